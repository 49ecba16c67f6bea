"""MindSpore: with `slimrun.msmodelslim.mindspore` the only place that imports it."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from slimrun.ops import calibration
from slimrun.ops.errors import Unavailable
from slimrun.ops.framework.base import Device, LoadedModel
from slimrun.ops.memory import Room
from slimrun.ops.model.base import Model, Outline
from slimrun.ops.quant.base import Quantizer

if TYPE_CHECKING:
    from slimrun.ops.calibration.sequential import SequentialCalibrator

    from .language_model import MindSporeModel

WEIGHTS = ("safetensors", "ckpt")
DEVICES = {"cpu": "CPU", "npu": "Ascend"}  # device.type -> MindSpore's name
INSTALL = "pip install 'slimrun[mindspore]'"
VERSIONS = "mindspore>=2.9,<2.11, numpy>=1.26,<2, pyarrow<26 and pandas<3.1"


def require(asked: str = "framework=mindspore", instead: str = ", or take framework=pytorch") -> None:
    """Unavailable unless MindSpore can be imported and works with the numpy that is here.

    It says what was `asked` for, what to install, and what to take `instead`.
    """
    if importlib.util.find_spec("mindspore") is None:
        raise Unavailable(f"{asked} needs the package mindspore: {INSTALL}{instead}")
    if int(np.__version__.partition(".")[0]) >= 2:
        raise Unavailable(f"{asked}: MindSpore crashes with numpy {np.__version__}; install {VERSIONS} ({INSTALL})")
    os.environ.setdefault("GLOG_v", "3")  # its warnings go to stderr line by line; 3: errors only
    try:
        importlib.import_module("mindspore")
    except Exception as error:  # a broken installation raises anything, and its reason is what the user needs
        first = str(error).strip().split("\n")[0]
        raise Unavailable(f"{asked}: mindspore does not load ({first}); install {VERSIONS} ({INSTALL})") from error


@dataclass(frozen=True)
class MindSpore:
    """Runs LLaMA models, or a user's own network (`model=own`), with MindSpore on the CPU or on Ascend.

    `weights` is the kind of the bundle's weight file: "safetensors", which both frameworks read, or "ckpt".
    """

    gives_gradients: ClassVar[bool] = False

    weights: str = "safetensors"

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights={self.weights} is not known; allowed: {', '.join(WEIGHTS)}")

    @property
    def weight_file(self) -> str:
        """The suffix of the bundle's weight file."""
        return f".{self.weights}"

    def check(self, model: Model, device: Device) -> Outline:
        """The outline of the model; Unavailable with one line on whatever would stop the run later."""
        _set_device(device)
        from . import loading

        if own := model.own():
            return loading.outline_of(loading.cell(own[0]))
        if model.trust_remote_code:
            raise Unavailable(
                "model.trust_remote_code=true is for framework=pytorch: the code that such a model brings is "
                "PyTorch's; give your own network with model=own model.loader=PACKAGE.FUNCTION"
            )
        loading.check_config(model.config(), model.name, model.dtype)
        return model.outline(loading.FORMATS)

    def fingerprint(self, model: Model, *, read: bool = True) -> str | None:
        """What the float weights are, as with framework=pytorch; of a user's network the content of its parameters."""
        content = model.fingerprint(read=read)
        if content and (own := model.own()):
            from . import loading

            content = f"{content}:{loading.content_hash(loading.cell(own[0]))}"
        return content and f"mindspore-{version('mindspore')}:{content}"

    def load(self, model: Model, device: Device) -> MindSporeModel:
        """The float model on the device."""
        _set_device(device)
        from . import loading

        return loading.load(model, str(self.fingerprint(model)), _room(device))

    def calibrator(
        self, model: LoadedModel, quantizer: Quantizer, texts: Sequence[str], length: int
    ) -> SequentialCalibrator:
        """The method's procedure for the model, on these texts, each cut to `length` tokens."""
        from .language_model import MindSporeModel
        from .network import MindSporeNetwork

        assert isinstance(model, MindSporeModel)
        samples = [[model.tokenizer(text, truncation=True, max_length=length)["input_ids"]] for text in texts]
        forward = model.states if quantizer.ignore_last_linear else model.logits
        return calibration.calibrator(MindSporeNetwork(model.network, forward, model.room), quantizer, samples)

    def restore(self, folder: Path, device: Device, trust_remote_code: bool = False) -> MindSporeModel:
        """The running model of a bundle folder, from nothing but its files."""
        _set_device(device)
        from . import loading

        return loading.restore(folder, _room(device), trust_remote_code)


def _room(device: Device) -> Room:
    """What main memory has for a model; a card holds its model itself."""
    return Room(device.room, device.offload_folder) if device.type == "cpu" else Room()


def _set_device(device: Device) -> None:
    """Make the device MindSpore's; Unavailable when it cannot be."""
    require()
    if device.device_map is not None:
        raise Unavailable(
            f"device.device_map={device.device_map} is for framework=pytorch; framework=mindspore runs on one "
            f"device: {', '.join(DEVICES)}"
        )
    if device.type not in DEVICES:
        raise Unavailable(f"device={device.name}: framework=mindspore runs on {', '.join(DEVICES)}")
    if device.type != "cpu" and any(device.max_memory.values()):
        raise Unavailable(
            f"device.max_memory: framework=mindspore holds the model on the card with device={device.name}; it is for "
            "device=cpu"
        )
    import mindspore

    if mindspore.get_context("device_target") == DEVICES[device.type]:
        return  # it cannot be set again once an operator has run
    try:
        mindspore.set_device(DEVICES[device.type])
    except (RuntimeError, ValueError) as error:
        raise Unavailable(
            f"device={device.name}: MindSpore finds no {DEVICES[device.type]} here; install CANN with the driver of "
            "your card and the MindSpore build for it (mindspore.cn/install), or take device=cpu"
        ) from error
