"""PyTorch: the only place that imports accelerate and torch_npu, and runs models of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from slimrun.ops import calibration
from slimrun.ops.framework.base import Device, LoadedModel
from slimrun.ops.memory import Room
from slimrun.ops.model.base import Model, Outline
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.weights.folder import TRANSFORMERS
from slimrun.ops.weights.misfit import check_finite

from .device import check_device

if TYPE_CHECKING:
    from slimrun.ops.calibration.sequential import SequentialCalibrator

    from .calibrator import Calibrator
    from .language_model import TorchModel

__all__ = ["Calibrator", "PyTorch", "TorchModel"]


@dataclass(frozen=True)
class PyTorch:
    """Runs models of transformers on a torch device."""

    weight_file: ClassVar[str] = ".safetensors"
    gives_gradients: ClassVar[bool] = True

    def check(self, model: Model, device: Device) -> Outline:
        """The outline of the model; Unavailable with one line on whatever would stop the run later."""
        check_device(device)
        return model.outline(TRANSFORMERS)

    def fingerprint(self, model: Model, *, read: bool = True) -> str | None:
        """What the float weights are: of a folder its content, of a hub id its commit, of random weights the seed."""
        return model.fingerprint(read=read)

    def load(self, model: Model, device: Device) -> TorchModel:
        """The float model on the device."""
        from .language_model import TorchModel, check_output_head
        from .loading import load_pretrained
        from .mapped import settle
        from .placement import input_device, place

        check_device(device)
        room = Room(device.room, device.offload_folder)
        module = model.drawn()
        module = place(load_pretrained(model.fetch(), model, room) if module is None else module, device)
        settle(module, room)
        check_finite(room.passing(module.named_parameters()))
        fingerprint = str(self.fingerprint(model))
        loaded = TorchModel(module, model.tokenizer(), model.name, fingerprint, input_device(module, device), room)
        check_output_head(loaded)
        return loaded

    def calibrator(
        self, model: LoadedModel, quantizer: Quantizer, texts: Sequence[str], length: int
    ) -> SequentialCalibrator:
        """The method's procedure for the model, on these texts, each cut to `length` tokens."""
        from .language_model import TorchModel
        from .network import TorchNetwork

        assert isinstance(model, TorchModel)
        samples = []
        for text in texts:
            ids = model.tokenizer(text, return_tensors="pt", truncation=True, max_length=length)
            samples.append({"input_ids": ids["input_ids"].to(model.device), "use_cache": False})
        # the output head need not run when nothing of it is to be calibrated
        forward = model.module.base_model if quantizer.ignore_last_linear else model.module
        return calibration.calibrator(TorchNetwork(model.module, forward, model.room), quantizer, samples)

    def restore(self, folder: Path, device: Device, trust_remote_code: bool = False) -> TorchModel:
        """The running model of a bundle folder, from nothing but its files."""
        from . import restoring
        from .language_model import TorchModel
        from .mapped import release_after_use
        from .placement import input_device, place

        check_device(device)
        room = Room(device.room, device.offload_folder)
        module, tokenizer = restoring.restore(folder, room, trust_remote_code)
        release_after_use(module, room)
        module = place(module, device)
        return TorchModel(module, tokenizer, folder.name, "bundle", input_device(module, device), room)


def __getattr__(name: str) -> Any:
    """Imported on first use: a plan needs neither, and transformers takes seconds."""
    if name == "Calibrator":
        from .calibrator import Calibrator

        return Calibrator
    if name == "TorchModel":
        from .language_model import TorchModel

        return TorchModel
    raise AttributeError(f"module 'slimrun.ops.framework.pytorch' has no attribute {name!r}")
