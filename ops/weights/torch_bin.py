"""Tensors of a .bin file that torch.save wrote. Nothing in it is executed: torch reads names and tensors alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from slimrun.ops.errors import first_line


class TorchFile:
    """Memory-mapped where it is a zip archive, as torch has written since 1.6; older ones are read whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def headers(self) -> dict[str, Tensor]:
        """Every tensor by name, on the meta device."""
        return {name: tensor.to("meta") for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """The numbers of one tensor."""
        return self._tensors[name]

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        try:
            with warnings.catch_warnings(action="ignore"):  # about the protocol of a damaged pickle
                mapped = is_zipfile(self._path)
                tensors: Any = torch.load(self._path, map_location="cpu", weights_only=True, mmap=mapped)
        except OSError:  # of the disk
            raise
        except Exception as error:  # of damaged bytes torch raises whatever they lead it to
            # an UnpicklingError tells at length how to execute the file, the one that it was made of what is wrong
            reason = error.__context__ if isinstance(error, UnpicklingError) else error
            raise ValueError(first_line(reason or error)) from error
        if not isinstance(tensors, Mapping):
            raise ValueError(f"holds {type(tensors).__name__}, expected the tensors of model.state_dict()")
        for name, value in tensors.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise ValueError(f"{name} is {type(value).__name__}, expected the tensors of model.state_dict()")
        return dict(tensors)
