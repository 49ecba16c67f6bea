"""The project's entropy coder on matrices in the tile order of Ascend hardware (`ops/csrc/nz.hpp`).

Files have the shapes that msModelSlim's weight compression gives them; what the coded bytes mean is ours, so that no
Ascend device decodes them: the container is called "slimrun-nz", theirs "ascend" (`cann.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from slimrun.ops import _native

from .base import FRACTAL, TILING, Allocate, Int8Array, Parts, empty, from_nz, to_nz

MAX_FRACTALS = 50_000  # a side


@dataclass(frozen=True)
class NZ:
    """Codes a matrix as `.weight` (payload), `.index` (8 bytes a tile) and `.info` (its sizes)."""

    container: ClassVar[str] = "slimrun-nz"
    version: ClassVar[int] = _native.NZ_VERSION
    parts: ClassVar[tuple[str, ...]] = ("info", "index", "weight")

    threads: int = 0

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and the range."""
        if self.threads < 0:
            raise ValueError(f"threads={self.threads} is out of range; allowed: 0 (all cores) or more")

    def encode(self, weight: Int8Array) -> Parts:
        """Code an int8 matrix [n, k] of up to 800,000 x 1,600,000 and less than 4 GiB once coded.

        `.info` is int64[5]: tiling_k, tiling_n, k, n and 1. The bytes do not depend on the number of threads.
        """
        fractals = to_nz(weight)
        bound, index_bytes = _native.nz_sizes(fractals)
        payload, index = np.empty(bound, np.int8), np.empty(index_bytes, np.int8)
        size = _native.nz_encode_into(fractals, payload, index, self.threads)
        payload.resize(size, refcheck=False)  # gives back what packing saved; nobody else has seen the array
        n, k = weight.shape
        return {"weight": payload, "index": index, "info": np.array([TILING, TILING, k, n, 1], np.int64)}

    def decode(self, parts: Mapping[str, npt.NDArray[np.generic]], allocate: Allocate = empty) -> Int8Array:
        """The matrix again; every checksum is verified, and ValueError says what is wrong.

        An empty `.index` means fractals [k1, n1, 16, 32] stored as they are, in that shape or flat. `.info` has no
        checksum: sizes that belong to other fractals, or cut off values other than zero, are refused.
        """
        missing = [name for name in self.parts if name not in parts]
        if missing:
            raise ValueError(f"lacks .{', .'.join(missing)}")
        n, k = _sizes(parts["info"])
        shape = (-(-k // FRACTAL[1]), -(-n // FRACTAL[0]), *FRACTAL)
        payload, index = _flat(parts["weight"], "weight"), _flat(parts["index"], "index")
        if index.size == 0:
            return from_nz(_uncoded(parts["weight"], payload, shape), n, k, allocate)
        payload_shape = _native.nz_inspect(payload, index)
        if payload_shape != shape[:2]:
            raise ValueError(f"info: a matrix [{n}, {k}] has {shape[:2]} fractals, but the payload {payload_shape}")
        matrix = allocate((n, k))  # first: it may refuse a claim that is too large
        fractals = np.empty(shape, np.int8)
        _native.nz_decode_into(payload, index, fractals, self.threads)
        return from_nz(fractals, n, k, lambda _: matrix)


def _sizes(info: npt.NDArray[np.generic]) -> tuple[int, int]:
    """n and k of a matrix by its `.info`."""
    if info.dtype.kind not in "iu" or info.size != 5:
        raise ValueError(f"info: {info.size} elements of {info.dtype}, expected 5 integers")
    tiling_k, tiling_n, k, n, last = (int(number) for number in info.reshape(-1).tolist())
    if (tiling_k, tiling_n, last) != (TILING, TILING, 1):
        raise ValueError(f"info: {info.tolist()}, expected [{TILING}, {TILING}, k, n, 1]")
    if not (1 <= n <= MAX_FRACTALS * FRACTAL[0] and 1 <= k <= MAX_FRACTALS * FRACTAL[1]):
        raise ValueError(f"info: a matrix [{n}, {k}], expected at least 1 and at most {MAX_FRACTALS} fractals a side")
    return n, k


def _flat(part: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.int8]:
    """The bytes of an array, whatever they are called."""
    if part.dtype.itemsize != 1:
        raise ValueError(f"{name}: elements of {part.dtype}, expected one byte each")
    return np.ascontiguousarray(part).reshape(-1).view(np.int8)


def _uncoded(weight: npt.NDArray[np.generic], flat: npt.NDArray[np.int8], shape: tuple[int, ...]) -> Int8Array:
    if flat.size != np.prod(shape, dtype=np.int64) or weight.shape not in (shape, flat.shape):
        raise ValueError(f"weight: the shape {weight.shape} without an index, expected {shape} or its bytes")
    return flat.reshape(shape)
