"""Tensors of a .bin file that torch.save wrote. Nothing in it is executed: torch reads names and tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor


class TorchFile:
    """Memory-mapped where it is a zip archive, as torch has written since 1.6; older ones are read whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors: dict[str, Tensor] | None = None

    def headers(self) -> dict[str, Tensor]:
        """Every tensor by name, on the meta device."""
        return self._load("meta")

    def read(self, name: str) -> Tensor:
        """The numbers of one tensor."""
        if self._tensors is None:
            self._tensors = self._load("cpu")
        return self._tensors[name]

    def _load(self, device: str) -> dict[str, Tensor]:
        tensors: Any = torch.load(self._path, map_location=device, weights_only=True, mmap=is_zipfile(self._path))
        if not isinstance(tensors, Mapping):
            raise ValueError(f"holds {type(tensors).__name__}, expected the tensors of model.state_dict()")
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} is {type(value).__name__}, expected the tensors of model.state_dict()")
        return dict(tensors)
