"""Lossless coding of numbers wider than a byte: each byte of them is a plane of its own (`ops/csrc/planes.hpp`).

The highest plane (exponents) takes about 2.7 bits a number of trained weights; mantissas that are noise are stored as
they are, and those of numbers that were narrower before take nothing. Integers are steps that an operator wants as the
bits of a float32 in an int64, and biases. All little-endian:

     0  uint8[4]  magic "SLRF"
     4  uint8     version, 1
     5  uint8     dtype: 0 float16, 1 bfloat16, 2 float32, 3 float64, 4 int32, 5 int64
     6  uint16    0
     8  uint32    CRC-32C of all up to the planes, this field 0
    12  uint32    0
    16  uint64[w] size of each plane's container in bytes, w = bytes of a number, lowest byte of the number first
     .  w containers (`ops/csrc/container.hpp`), all of the array's shape, tile for tile the same numbers
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slimrun.ops import _native

MAGIC: Final = b"SLRF"
VERSION: Final = 1
DTYPES: Final = ("float16", "bfloat16", "float32", "float64", "int32", "int64")
BITS: Final = {"float16": "<u2", "bfloat16": "<u2", "float32": "<u4", "float64": "<u8", "int32": "<u4", "int64": "<u8"}
FIXED: Final = struct.Struct("<4sBBHII")

Int8Array = NDArray[np.int8]


def bits_of(array: Any) -> tuple[str, NDArray[Any]]:
    """(name of the dtype, the numbers' bits as unsigned integers) of an array or a CPU tensor; "" for another dtype.

    numpy has no bfloat16: such arrays come as tensors, or with the dtype of the package ml_dtypes.
    """
    name = str(getattr(array, "dtype", "")).removeprefix("torch.")
    if name not in BITS:
        return "", np.asarray(array)
    if type(array).__module__.partition(".")[0] == "torch":
        import torch

        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[array.element_size()]
        array = array.detach().contiguous().view(integers).numpy()
    bits: NDArray[Any] = np.asarray(array, order="C")
    return name, bits.view(bits.dtype.byteorder.replace("|", "=") + BITS[name][1:]).astype(BITS[name], copy=False)


def planes_of(bits: NDArray[Any]) -> Int8Array:
    """Numbers of any shape -> planes [bytes of a number, *shape]."""
    planes = np.empty((bits.itemsize, *bits.shape), np.int8)
    _native.split_into(bits, planes)
    return planes


def head_size(planes: int) -> int:
    """Bytes of `head` for so many planes."""
    return FIXED.size + 8 * planes


def head(name: str, sizes: Sequence[int]) -> bytes:
    """What comes before the containers of all planes, which have these sizes."""
    packed = struct.pack(f"<{len(sizes)}Q", *sizes)
    return _header(DTYPES.index(name), packed) + packed


def is_coded(packed: NDArray[np.uint8]) -> bool:
    """Whether bytes begin as such an array does."""
    return packed[:4].tobytes() == MAGIC


def open_planes(packed: NDArray[np.uint8]) -> tuple[str, list[NDArray[np.uint8]]]:
    """(name of the dtype, the container of each plane, views of `packed`); ValueError says what is wrong."""
    if packed.size < FIXED.size:
        raise ValueError("floats: shorter than the header")
    magic, version, code, *_ = FIXED.unpack(packed[: FIXED.size].tobytes())
    if magic != MAGIC or version != VERSION or code >= len(DTYPES):
        raise ValueError("floats: no header that is known here")
    name = DTYPES[code]
    width = np.dtype(BITS[name]).itemsize
    end = head_size(width)
    sizes = packed[FIXED.size : end].tobytes()
    if len(sizes) != 8 * width or packed[: FIXED.size].tobytes() != _header(code, sizes):
        raise ValueError("floats: the header is damaged")
    containers = []
    for size in struct.unpack(f"<{width}Q", sizes):
        if size > packed.size - end:
            raise ValueError("floats: shorter than its planes")
        containers.append(packed[end : end + size])
        end += size
    if end != packed.size:
        raise ValueError("floats: longer than its planes")
    return name, containers


def merged(name: str, planes: Int8Array) -> NDArray[Any]:
    """Planes [bytes of a number, *shape] -> the numbers' bits."""
    bits = np.empty(planes.shape[1:], BITS[name])
    _native.merge_into(planes, bits)
    return bits


def numbers(name: str, bits: NDArray[Any]) -> NDArray[Any]:
    """Bits as what they are; bfloat16, which numpy lacks, stays bits."""
    return bits if name == "bfloat16" else bits.view(np.dtype(name).newbyteorder("<"))


def _header(code: int, sizes: bytes) -> bytes:
    """The part of fixed size, with its checksum."""
    unsealed = FIXED.pack(MAGIC, VERSION, code, 0, 0, 0)
    checksum = _native.crc32c(np.frombuffer(unsealed + sizes, np.uint8))
    return FIXED.pack(MAGIC, VERSION, code, 0, checksum, 0)
