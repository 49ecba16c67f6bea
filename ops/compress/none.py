"""No compression: int8 weights are stored one byte each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from .base import Allocate, Int8Array, Parts, empty


@dataclass(frozen=True)
class NoCompression:
    """Stores the matrix itself."""

    container: ClassVar[str] = ""
    version: ClassVar[int] = 0
    parts: ClassVar[tuple[str, ...]] = ("weight",)

    def encode(self, weight: Int8Array) -> Parts:
        """The weight as it is."""
        return {"weight": weight}

    def decode(self, parts: Mapping[str, npt.NDArray[np.generic]], allocate: Allocate = empty) -> Int8Array:
        """The weight as it is; ValueError when it is no int8 matrix."""
        weight = parts["weight"]
        if weight.dtype != np.int8 or weight.ndim != 2:
            raise ValueError(f"weight is {weight.dtype} with {weight.ndim} dimensions, expected an int8 matrix")
        return weight.astype(np.int8, copy=False)
