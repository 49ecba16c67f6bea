"""What a .ckpt file holds, read without MindSpore, whose own reader believes what damaged files say of their sizes.

The file is a protocol buffer (`mindspore/train/checkpoint.proto`):

    Checkpoint { repeated Value value = 1 }
    Value { string tag = 1; TensorProto tensor = 2 }
    TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }

A long tensor is several Values of the same tag; after the last, 17 bytes may hold a CRC-32 of what is before them.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

DTYPES = {
    "Bool": torch.bool,
    "Int8": torch.int8,
    "UInt8": torch.uint8,
    "Int16": torch.int16,
    "Int32": torch.int32,
    "Int64": torch.int64,
    "Float16": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float32": torch.float32,
    "Float64": torch.float64,
}
MAX_DIMENSIONS, MAX_NAME = 16, 1024  # of a tensor; bytes of a tag
TRAILER, TRAILER_BYTES = b"crc_num", 17
BLOCK = 1 << 20
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # how a field is written

Span = tuple[int, int]  # where something begins in the file, and where it ends


@dataclass
class Entry:
    """A tensor of the file: what is said of it, and where its bytes are."""

    dtype: str
    dims: list[int]
    spans: list[Span] = field(default_factory=list)

    def shape(self) -> tuple[int, ...]:
        """The tensor's shape; ValueError when its bytes are not those of such a one."""
        if self.dtype not in DTYPES:
            raise ValueError(f"the type {self.dtype!r} is not known; known: {', '.join(DTYPES)}")
        stored, itemsize = sum(end - start for start, end in self.spans), DTYPES[self.dtype].itemsize
        shape = () if self.dims == [0] and stored else tuple(self.dims)  # a number is written so
        if len(shape) > MAX_DIMENSIONS or any(side < 0 for side in shape) or math.prod(shape) * itemsize != stored:
            raise ValueError(f"{stored} bytes are no {self.dtype} of shape {list(shape)[:MAX_DIMENSIONS]}")
        return shape


class CkptFile:
    """Sizes are held against the bytes that are there before anything is allocated; ValueError says what is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            self._entries = _entries(file, _without_trailer(file, os.fstat(file.fileno()).st_size))

    def headers(self) -> dict[str, Tensor]:
        """Every tensor by name, on the meta device."""
        return {name: _named(name, partial(_header, entry)) for name, entry in self._entries.items()}

    def read(self, name: str) -> Tensor:
        """The numbers of one tensor."""
        with self._path.open("rb") as file:
            return _named(name, partial(_tensor, file, self._entries[name]))


def _header(entry: Entry) -> Tensor:
    shape = entry.shape()
    return torch.empty(shape, dtype=DTYPES[entry.dtype], device="meta")


def _named(name: str, make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives; its ValueError begins with the tensor's name."""
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _entries(file: BufferedReader, end: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    before = ""
    for number, value in _fields(file, (0, end)):
        if number != 1 or not isinstance(value, tuple):
            raise ValueError(f"holds a field {number}, which checkpoints do not have")
        name, dtype, dims, content = _value(file, value)
        if name != before and name in entries:
            raise ValueError(f"holds {name} twice")
        entry = entries.setdefault(name, Entry(dtype, dims))
        if (entry.dtype, entry.dims) != (dtype, dims):
            raise ValueError(f"{name}: its slices differ in type or shape")
        entry.spans.append(content)
        before = name
    return entries


def _value(file: BufferedReader, span: Span) -> tuple[str, str, list[int], Span]:
    """Name, type, dimensions and content of a Value."""
    entry = {number: value for number, value in _fields(file, span) if isinstance(value, tuple)}
    if entry.keys() != {1, 2}:
        raise ValueError(f"an entry with the fields {sorted(entry)}, expected a name and a tensor")
    name = _text(file, entry[1])
    dims: list[int] = []
    tensor: dict[int, Span] = {}
    for number, value in _fields(file, entry[2]):
        if number == 1:
            dims += [value] if isinstance(value, int) else _varints(file, value)
        elif isinstance(value, tuple):
            tensor[number] = value
        if len(dims) > MAX_DIMENSIONS:
            raise ValueError(f"{name}: more than {MAX_DIMENSIONS} dimensions")
    if tensor.keys() != {2, 3}:
        raise ValueError(f"{name}: a tensor with the fields {sorted(tensor)}, expected its type and its content")
    return name, _text(file, tensor[2]), dims, tensor[3]


def _fields(file: BufferedReader, span: Span) -> Iterator[tuple[int, int | Span]]:
    """Number and value of each field of a message: an integer, or where its bytes are."""
    at, end = span
    while at < end:
        file.seek(at)
        key = _varint(file, end)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value: int | Span = _varint(file, end)
            at = file.tell()
        else:
            if kind not in (FIXED64, BYTES, FIXED32):
                raise ValueError(f"a field of kind {kind} at byte {at}")
            length = _varint(file, end) if kind == BYTES else 8 if kind == FIXED64 else 4
            start = file.tell()
            at = start + length
            value = (start, at)
        if number == 0 or at > end:
            raise ValueError(f"the field that ends at byte {at} goes beyond its message, which ends at {end}")
        yield number, value


def _varints(file: BufferedReader, span: Span) -> list[int]:
    """Integers one after the other, as other writers put them."""
    file.seek(span[0])
    numbers: list[int] = []
    while file.tell() < span[1] and len(numbers) <= MAX_DIMENSIONS:
        numbers.append(_varint(file, span[1]))
    return numbers


def _varint(file: BufferedReader, end: int) -> int:
    """A signed integer of up to 64 bits."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte or file.tell() > end:
            raise ValueError(f"a number at byte {file.tell()} goes beyond its message")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            value &= (1 << 64) - 1
            return value - (1 << 64) if value >> 63 else value
    raise ValueError(f"a number of more than 64 bits at byte {file.tell()}")


def _text(file: BufferedReader, span: Span) -> str:
    start, end = span
    if end - start > MAX_NAME:
        raise ValueError(f"a name of {end - start} bytes; allowed: {MAX_NAME}")
    file.seek(start)
    return file.read(end - start).decode("utf-8")


def _tensor(file: BufferedReader, entry: Entry) -> Tensor:
    shape = entry.shape()
    tensor = torch.empty(shape, dtype=DTYPES[entry.dtype])
    memory = memoryview(cast(Any, tensor.reshape(-1).view(torch.uint8).numpy()))
    at = 0
    for start, end in entry.spans:
        file.seek(start)
        if file.readinto(memory[at : at + end - start]) != end - start:
            raise ValueError("the file has become shorter while it was read")
        at += end - start
    if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        raise ValueError("booleans that are neither 0 nor 1")
    return tensor


def _without_trailer(file: BufferedReader, size: int) -> int:
    """Where the entries end; ValueError when the checksum behind them is not theirs."""
    file.seek(max(0, size - TRAILER_BYTES))
    trailer = file.read(TRAILER_BYTES)
    if not trailer.startswith(TRAILER):
        return size
    end = size - TRAILER_BYTES
    file.seek(0)
    checksum = 0
    while (at := file.tell()) < end:
        checksum = zlib.crc32(file.read(min(BLOCK, end - at)), checksum)
    if checksum != int.from_bytes(trailer[len(TRAILER) :], "big"):
        raise ValueError("its checksum is not that of its content")
    return end
