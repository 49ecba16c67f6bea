"""What a run says about model and device, and what every framework answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from slimrun.ops.calibration.base import Procedure
from slimrun.ops.memory import Room, free_memory
from slimrun.ops.model.base import Model, Outline
from slimrun.ops.quant.base import Quantizer

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
MEMORY_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMG]i?B)|(\d{7,})()")  # a short number without unit is hardly of bytes
UNITS = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
FREE_SHARE = 0.75  # of what is free: the rest is for what is computed

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Device:
    """Where the model runs, as conf/device says it: data only, so that a new device is one yaml.

    `type` is torch's name of it, `module` the package that brings it (null for built-in ones), `install` what to
    tell a user on whose machine it is missing. `environment` is exported before that package is imported; null
    values are left as they are.

    `device_map` spreads the model over all visible cards; `max_memory` limits what of its weights lies on each ("0",
    "1", ..., a size such as 10GiB) and in main memory ("cpu"), empty or null: what is free. Blocks for which the cards
    have no room stay in main memory and visit the first card as they run. Weights of a model that is larger than
    `max_memory.cpu` are read from its files block by block, and what is made of them beyond that size lies on disk, in
    `offload_folder` (null: the system's temporary folder), private, and gone when the process ends.
    """

    name: str
    type: str
    module: str | None = None
    install: str = ""
    device_map: str | None = None
    max_memory: dict[str, str | None] = field(default_factory=dict)
    offload_folder: str | None = None
    environment: dict[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        if self.device_map is not None and self.device_map not in DEVICE_MAPS:
            raise ValueError(f"device_map={self.device_map} is not known; allowed: null, {', '.join(DEVICE_MAPS)}")
        if self.device_map is not None and self.type == "cpu":
            raise ValueError(f"device_map={self.device_map} spreads over cards; allowed with type=cpu: null")
        for key, size in self.max_memory.items():
            if not (key == "cpu" or key.isdecimal()):
                raise ValueError(f"max_memory.{key} names no memory; allowed: cpu, or the number of a card: 0, 1, ...")
            if self.device_map is None and key not in ("cpu", "0"):
                raise ValueError(f"max_memory.{key}: device_map=null keeps to one card; allowed: 0, cpu")
            if self.type == "cpu" and key != "cpu":
                raise ValueError(f"max_memory.{key} names a card; allowed with type=cpu: cpu")
            if size is not None and not MEMORY_SIZE.fullmatch(size):
                raise ValueError(
                    f"max_memory.{key}={size} is no size; allowed: a number with KiB, MiB, GiB, KB, MB, GB, "
                    "or a million bytes and more as a plain number"
                )

    @property
    def room(self) -> float:
        """Bytes of main memory for a model and what is made of it."""
        size = self.max_memory.get("cpu")
        return FREE_SHARE * free_memory() if size is None else size_of(size)


def size_of(text: str) -> float:
    """Bytes of a size such as 10GiB, which `Device` has checked."""
    match = MEMORY_SIZE.fullmatch(text)
    assert match is not None
    number, unit = (group for group in match.groups() if group is not None)
    return float(number) * UNITS[unit]


class Reader(Protocol):
    """How a model reads text; it also answers what `evaluation` asks of one."""

    tokenizer: Any  # of transformers

    @property
    def context(self) -> int:
        """Longest window in tokens."""


class LoadedModel(Reader, Protocol):
    """A model in memory; it also answers what `evaluation` asks of a language model.

    Every framework's own class satisfies this; `Framework` methods take back what they gave.
    """

    name: str
    notes: list[str]  # what a reader of the scores must know of how they came about, one line each
    fingerprint: str  # hash of the weights' content and everything that shapes the float outputs
    room: Room  # for what is made of its weights

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        """Of all its tensors by name, as it was loaded."""

    def output_head(self) -> Callable[[FloatArray], FloatArray]:
        """The head alone, to outlive the model: hidden states [N, H] -> log-probabilities [N, V]."""

    def logits_checksum(self) -> str:
        """sha256 of the logits on fixed prompts: equal in two processes exactly when the models compute alike."""

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Everything the bundle stores, by the names it is stored under (tied tensors once)."""

    def quantized(self) -> list[str]:
        """Names of the quantized linears, in module order."""

    def save_description(self, folder: Path) -> None:
        """Write config.json and the tokenizer's files into the folder."""


class Framework(Protocol):
    """What a framework does for a run."""

    @property
    def weight_file(self) -> str:
        """The suffix of the bundle's weight file."""

    @property
    def gives_gradients(self) -> bool:
        """Whether methods that need gradients run here."""

    def check(self, model: Model, device: Device) -> Outline:
        """The outline of the model, without loading a weight.

        Unavailable says in one line why a run could not start: no such folder or device, truncated weights...
        """

    def fingerprint(self, model: Model, *, read: bool = True) -> str | None:
        """The loaded model's `fingerprint`, from its files alone.

        None when `read` is false and weights would have to be read for it.
        """

    def load(self, model: Model, device: Device) -> LoadedModel:
        """The float model, ready to run; its fingerprint is the one that `fingerprint` gives."""

    def calibrator(self, model: LoadedModel, quantizer: Quantizer, texts: Sequence[str], length: int) -> Procedure:
        """The method's procedure for the model, on these texts, each cut to `length` tokens."""

    def restore(self, folder: Path, device: Device, trust_remote_code: bool = False) -> LoadedModel:
        """The running model of a bundle folder, from nothing but its files.

        A model that brings its own Python code runs only with `trust_remote_code`; ValueError names the flag.
        """
