"""A file of tensors: what it holds by name, looked at without the numbers, and read one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from torch import Tensor


class TensorFile(Protocol):
    """An open file of tensors; ValueError, OSError or what the format's library raises tells that it is damaged."""

    def headers(self) -> dict[str, Tensor]:
        """Every tensor by name, on the meta device."""

    def read(self, name: str) -> Tensor:
        """The numbers of one tensor."""


def open_file(path: Path) -> TensorFile:
    """The file as its suffix says; no code that a file holds is ever run."""
    if path.suffix == ".safetensors":
        from slimrun.ops.weights.safetensors import SafetensorsFile

        return SafetensorsFile(path)
    if path.suffix == ".ckpt":
        from slimrun.ops.weights.protobuf import CkptFile

        return CkptFile(path)
    from slimrun.ops.weights.torch_bin import TorchFile

    return TorchFile(path)


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, one at a time."""
    file = open_file(path)
    for name in file.headers():
        yield name, file.read(name)
