"""What a codec answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

Int8Array = npt.NDArray[np.int8]
Parts = dict[str, npt.NDArray[np.int8] | npt.NDArray[np.int64]]  # tensor suffix ("weight", ...) -> what is stored


class Codec(Protocol):
    """Lossless coding of one int8 weight matrix [n, k] into the tensors that a bundle stores for it."""

    container: ClassVar[str]  # name of the container format, "" when weights are stored as they are
    version: ClassVar[int]  # of the container

    def encode(self, weight: Int8Array) -> Parts:
        """The stored tensors, by suffix; they restore the weight without anything else."""

    def decode(self, parts: Mapping[str, npt.NDArray[np.generic]]) -> Int8Array:
        """The weight [n, k] of its stored tensors; ValueError when they are malformed or corrupted."""
