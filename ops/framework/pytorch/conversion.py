"""Weights of a folder in another dtype than its files have, where memory has no room to convert all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from slimrun.ops.memory import Room, release
from slimrun.ops.scratch import ScratchFolder
from slimrun.ops.weights import safetensors
from slimrun.ops.weights.base import TensorFile, open_file
from slimrun.ops.weights.folder import INDEX, TRANSFORMERS, read_headers, weight_files


@contextmanager
def in_dtype(folder: Path, dtype: torch.dtype | None, room: Room) -> Iterator[Path | None]:
    """Where memory has no room for the weights, a scratch folder that has the matrices among them in this dtype.

    From there they are mapped, while transformers would convert all of them in memory. None where they fit, or where
    the files have that dtype.
    """
    files = weight_files(folder, TRANSFORMERS) if dtype is not None and folder.is_dir() else []
    stored = read_headers(files)
    other = {name for name, one in stored.items() if one.is_floating_point() and one.ndim > 1 and one.dtype != dtype}
    if dtype is None or not other or sum(one.numel() for one in stored.values()) * dtype.itemsize <= room.left:
        yield None
        return
    with ScratchFolder("slimrun-weights", room.folder) as scratch:
        for file in folder.iterdir():
            if file not in files and not file.name.endswith(INDEX):
                (scratch / file.name).symlink_to(file.resolve())
        where: dict[str, str] = {}
        for number, file in enumerate(files):
            source = Converted(open_file(file), other, dtype)
            headers = source.headers()
            safetensors.write(scratch / f"model-{number}.safetensors", headers, source.read, release)
            where |= dict.fromkeys(headers, f"model-{number}.safetensors")
        (scratch / f"model.safetensors{INDEX}").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        yield scratch


class Converted:
    """A file of tensors, some of them in another dtype."""

    def __init__(self, file: TensorFile, names: set[str], dtype: torch.dtype) -> None:
        self.file = file
        self.names = names
        self.dtype = dtype

    def headers(self) -> dict[str, Tensor]:
        """Every tensor by name, on the meta device."""
        return {name: self._as_wanted(name, one) for name, one in self.file.headers().items()}

    def read(self, name: str) -> Tensor:
        """The numbers of one tensor."""
        tensor = self.file.read(name)
        converted = self._as_wanted(name, tensor)
        release([tensor])
        return converted

    def _as_wanted(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if name in self.names else tensor
