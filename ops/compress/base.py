"""What a codec answers, and the order in which Ascend hardware keeps a matrix (NZ)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

Int8Array = npt.NDArray[np.int8]
Allocate = Callable[[tuple[int, ...]], Int8Array]  # an array of that shape, its content undefined
Parts = dict[str, npt.NDArray[np.int8] | npt.NDArray[np.int64]]  # tensor suffix ("weight", ...) -> what is stored

FRACTAL: Final = (16, 32)  # rows and columns of a fractal, the block that the hardware's int8 matrix unit takes
TILING: Final = 8  # fractals a side of a tile, the block that is coded on its own


def empty(shape: tuple[int, ...]) -> Int8Array:
    """An array of its own."""
    return np.empty(shape, np.int8)


class Limited:
    """Gives arrays of their own until they take more bytes together than coded ones of `stored` bytes plausibly do.

    A few bytes can claim an array of any size. Where no model says which shapes are right, this bounds what they get:
    256 MiB, or 64 times what is stored (an eighth of a bit a weight), whichever is more.
    """

    FLOOR: Final = 1 << 28
    FACTOR: Final = 64

    def __init__(self, stored: int) -> None:
        """Nothing is taken before the first array."""
        self.stored = stored
        self.left = max(self.FLOOR, self.FACTOR * stored)
        self._lock = threading.Lock()

    def __call__(self, shape: tuple[int, ...]) -> Int8Array:
        """An array of that shape, its content undefined; ValueError when it is too much."""
        with self._lock:
            self.left -= math.prod(shape)
            if self.left < 0:
                raise ValueError(f"claims an array of shape {shape}, more than {self.stored} bytes plausibly hold")
        return empty(shape)


class Codec(Protocol):
    """Lossless coding of one int8 weight matrix [n, k] into the tensors that a bundle stores for it."""

    @property
    def container(self) -> str:
        """Name of the container format, "" when weights are stored as they are."""

    @property
    def version(self) -> int:
        """Version of the container format."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The suffixes of the tensors that `encode` gives, an int8 `weight` among them: what a reader looks for."""

    def encode(self, weight: Int8Array) -> Parts:
        """The stored tensors, by suffix; they restore the weight without anything else."""

    def decode(self, parts: Mapping[str, npt.NDArray[np.generic]], allocate: Allocate = empty) -> Int8Array:
        """The weight [n, k] of its stored tensors, written into what `allocate` gives unless it is there already.

        Raises ValueError when the tensors are malformed or corrupted.
        """


class Arena:
    """Cuts arrays from blocks of 64 MiB, for any number of threads.

    The system gives a block huge pages. Small arrays of their own would cost a page fault every 4 KiB, which takes
    longer than decoding those 4 KiB does. A block lives as long as one of its arrays. `allocate` gives the blocks.
    """

    BLOCK: Final = 1 << 26
    ALIGNMENT: Final = 64

    def __init__(self, allocate: Allocate = empty) -> None:
        """Nothing is taken before the first array."""
        self._allocate = allocate
        self._lock = threading.Lock()
        self._rest = empty((0,))

    def __call__(self, shape: tuple[int, ...]) -> Int8Array:
        """A C-contiguous array of that shape, its content undefined."""
        size = math.prod(shape)
        if size > self.BLOCK // 2:
            return self._allocate(shape)
        with self._lock:
            if self._rest.size < size:
                self._rest = self._allocate((self.BLOCK,))
            array, self._rest = self._rest[:size], self._rest[-(-size // self.ALIGNMENT) * self.ALIGNMENT :]
        return array.reshape(shape)


def to_nz(weight: Int8Array) -> Int8Array:
    """The matrix [n, k] as fractals [k1, n1, 16, 32], k1 = ceil(k / 32) and n1 = ceil(n / 16), filled up with zeros.

    Fractal (i, j) holds rows 16 j .. 16 j + 15 and columns 32 i .. 32 i + 31. This is the order "NZ" of Ascend devices:
    fractals column after column, and inside them row after row (`ops/csrc/nz.hpp`).
    Raises TypeError if the dtype is not int8, ValueError if it is no matrix or has no element.
    """
    if weight.dtype != np.int8:
        raise TypeError(f"weight has dtype {weight.dtype}, expected int8")
    if weight.ndim != 2 or weight.size == 0:
        raise ValueError(f"weight has the shape {weight.shape}, expected [n, k] with n and k at least 1")
    rows, columns = FRACTAL
    n, k = weight.shape
    n1, k1 = -(-n // rows), -(-k // columns)
    if (n, k) != (n1 * rows, k1 * columns):
        weight = np.pad(weight, ((0, n1 * rows - n), (0, k1 * columns - k)))
    return np.ascontiguousarray(weight.reshape(n1, rows, k1, columns).transpose(2, 0, 1, 3))


def from_nz(fractals: Int8Array, n: int, k: int, allocate: Allocate = empty) -> Int8Array:
    """The matrix [n, k] whose fractals [ceil(k / 32), ceil(n / 16), 16, 32] `to_nz` gives.

    Raises ValueError if the shapes do not belong together or the rows and columns that fill up the last fractals are
    not zero, TypeError if the dtype is not int8.
    """
    if fractals.dtype != np.int8:
        raise TypeError(f"fractals have dtype {fractals.dtype}, expected int8")
    rows, columns = FRACTAL
    shape = (-(-k // columns), -(-n // rows), rows, columns)
    if n < 1 or k < 1 or fractals.shape != shape:
        raise ValueError(f"fractals have the shape {fractals.shape}, expected {shape} for a matrix [{n}, {k}]")
    padded = fractals.transpose(1, 2, 0, 3).reshape(shape[1] * rows, shape[0] * columns)
    if padded[n:].any() or padded[:, k:].any():
        raise ValueError(f"fractals of a matrix [{n}, {k}] have values beyond its last row or column")
    matrix = allocate((n, k))
    matrix[:] = padded[:n, :k]
    return matrix
