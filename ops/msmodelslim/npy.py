"""Dictionaries of arrays and tensors in `.npy` files, as `np.save` leaves them, read without executing anything.

Such a file is a pickle. `load` runs it on `slimrun.msmodelslim.pickle_machine`, where it may call only the functions of
this file, which check every size against the bytes that are there; numpy's and torch's own loading code never sees it.
"""

from __future__ import annotations

import io
import math
import os
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import torch
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from torch import Tensor

from slimrun.msmodelslim import pickle_writer
from slimrun.msmodelslim.pickle_machine import Machine, Source, Unfinished, plain_names
from slimrun.ops.files import WEIGHT_MODE, replacing

Array = NDArray[Any]
Entry = Array | Tensor

MAX_DIMENSIONS, MAX_LENGTH = 32, 1 << 31  # of a shape
MAX_EXPANDED = 1 << 20  # elements of a view with stride 0 that are not stored
MAX_HEADER = 1024  # bytes; that of a dictionary has 118

NDARRAY = object()  # what numpy.ndarray is here
NUMPY_KINDS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
OBJECTS = ("O8", "O4", "O")  # the array around the dictionary
STORAGES = {f"torch.{storage.__name__}": dtype for dtype, storage in pickle_writer.STORAGES.items()}


def save(path: str | Path, mapping: Mapping[str, Entry]) -> None:
    """Write the dictionary atomically, mode 0400; `np.load(path, allow_pickle=True).item()` and `load` read it.

    Equal content gives equal bytes. Values are kept as they are: a torch tensor stays one. TypeError for a key or a
    value of another type.
    """
    for key, value in mapping.items():
        if not isinstance(key, str) or not isinstance(value, np.ndarray | Tensor):
            raise TypeError(f"{key!r}: {type(value).__name__}, expected a name and an array or a tensor")
    with replacing(Path(path), WEIGHT_MODE) as scratch, scratch.open("wb") as stream:
        holder = np.array(dict(mapping), object)
        npy_format.write_array_header_1_0(stream, npy_format.header_data_from_array_1_0(holder))
        pickle_writer.dump(holder, stream)


def load(path: str | Path) -> dict[str, Entry]:
    """The dictionary of a file of `save` or `np.save`, on the CPU, nothing executed.

    Numbers become arrays without dimensions, parameters plain tensors. ValueError names the file and what is wrong
    with it: no such dictionary, damaged, or anything in it that is no array or tensor.
    """
    try:
        if not Path(path).is_file():
            raise ValueError("is not a file")
        with open(path, "rb") as stream:
            return _Reader(stream, os.fstat(stream.fileno()).st_size).dictionary()
    except ValueError as error:
        reason = " ".join(str(error).split())  # a library's may take several lines, or quote what it found at length
        raise ValueError(f"{path}: {reason[:200]}") from error


@dataclass
class _Dtype(Unfinished):
    """A numpy dtype on its way."""

    kind: str
    order: str = "="

    def build(self, state: Any) -> None:
        plain = type(state) is tuple and len(state) == 8 and all(type(state[i]) is int for i in (0, 5, 6, 7))
        if not plain or state[0] != 3 or any(state[i] is not None for i in (2, 3, 4)) or state[5:7] != (-1, -1):
            raise ValueError("a dtype with a state that is none of a plain number")
        if type(state[1]) is not str or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a dtype with an unknown byte order")
        self.order = state[1]


class _Array(Unfinished):
    """A numpy array on its way; one of objects keeps them apart, since no entry may be one."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        self.value: Array | None = None
        self.objects: list[Any] | None = None

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5 or type(state[2]) is not _Dtype or type(state[3]) is not bool:
            raise ValueError("an array with a state that is none")
        _, shape, dtype, fortran, data = state
        if dtype.kind not in OBJECTS:
            self.value = self.reader.array(data, dtype, shape, fortran)
        elif shape == () and type(data) is list and len(data) == 1:
            self.objects = data
        else:
            raise ValueError("an array of objects is refused: the file may only hold arrays and tensors")


@dataclass(frozen=True)
class _Storage:
    """The memory of torch tensors."""

    flat: Tensor


class _StorageId:
    """What is said of a storage before its bytes; the device does not matter here."""

    def __init__(self, identifier: Any) -> None:
        if type(identifier) is not tuple or len(identifier) != 6:
            raise ValueError("a torch storage with an unknown id")
        kind, self.dtype, self.key, _, self.count, view = identifier
        known = type(kind) is str and kind == "storage" and type(self.key) is str and view is None
        if not known or not isinstance(self.dtype, torch.dtype) or type(self.count) is not int or self.count < 0:
            raise ValueError("a torch storage with an unknown id")


class _Reader:
    """One file: its bytes, and the functions that its pickle may call."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.source = Source(stream, size)
        self.names = plain_names(self.source) | {
            "numpy.ndarray": NDARRAY,
            "numpy.dtype": _dtype,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch.storage._load_from_bytes": self._storage,
        }
        for core in ("numpy.core", "numpy._core"):
            self.names[f"{core}.multiarray._reconstruct"] = self._reconstruct
            self.names[f"{core}.multiarray.scalar"] = self._scalar
            self.names[f"{core}.numeric._frombuffer"] = self._frombuffer

    def dictionary(self) -> dict[str, Entry]:
        self._header()
        root = Machine(self.names).run(self.source)
        content = root.objects[0] if isinstance(root, _Array) and root.objects else None
        if type(content) is not dict:
            raise ValueError("holds no dictionary of arrays and tensors")
        return {key: _entry(key, value) for key, value in content.items()}

    def _header(self) -> None:
        stream = cast(BinaryIO, self.source)
        try:
            version = npy_format.read_magic(stream)
            readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"version {version} of the format")
            shape, _, dtype = readers[version](stream, max_header_size=MAX_HEADER)
        except (ValueError, SyntaxError, TypeError, tokenize.TokenError, RecursionError, MemoryError) as error:
            raise ValueError(f"is no numpy file of a dictionary: {error}") from error
        if not dtype.hasobject or shape != ():
            raise ValueError(f"holds a plain array ({dtype}, shape {shape}), expected the dictionary of np.save")

    def array(self, data: Any, dtype: Any, shape: Any, fortran: bool = False) -> Array:
        """An array of its own memory from bytes, in this machine's byte order."""
        if type(dtype) is not _Dtype or dtype.kind not in NUMPY_KINDS:
            raise ValueError("an array of objects is refused: the file may only hold arrays and tensors")
        if type(data) not in (bytes, bytearray):
            raise ValueError("an array without data")
        number = np.dtype(dtype.order + dtype.kind)
        if len(data) != _elements(shape) * number.itemsize:
            raise ValueError(f"an array of shape {shape} and dtype {number} with {len(data)} bytes of data")
        self.source.spend(data)
        if dtype.kind == "b1":
            _check_booleans(data)
        order: Literal["F", "C"] = "F" if fortran else "C"
        array: Array = np.empty(shape, number.newbyteorder("="), order)
        if data:
            array[...] = np.ndarray(shape, number, buffer=data, order=order)
        return array

    def _reconstruct(self, kind: Any = None, *_: Any) -> _Array:
        if kind is not NDARRAY:
            raise ValueError("an array of another class is refused")
        return _Array(self)

    def _scalar(self, dtype: Any = None, data: Any = None, *_: Any) -> Array:
        return self.array(data, dtype, ())

    def _frombuffer(self, data: Any = None, dtype: Any = None, shape: Any = None, order: Any = "C", *_: Any) -> Array:
        if type(order) is not str or order not in ("C", "F"):
            raise ValueError("an array of an unknown order")
        return self.array(data, dtype, shape, order == "F")

    def _storage(self, data: Any = None, *_: Any) -> _Storage:
        """The storage in torch's own serialization: magic, version, machine, its type and size, keys, the bytes."""
        if type(data) is not bytes:
            raise ValueError("a torch storage without data")
        self.source.spend(data)
        source = Source(io.BytesIO(data), len(data))
        magic, protocol, machine = (Machine({}).run(source) for _ in range(3))
        if type(magic) is not int or type(protocol) is not int or (magic, protocol) != pickle_writer.STORAGE_START:
            raise ValueError("a torch storage that does not begin like one")
        if type(machine) is not dict or machine.get("little_endian") is not True:
            raise ValueError("a torch storage of another byte order")
        identity = Machine(STORAGES, _StorageId).run(source)
        keys = Machine({}).run(source)
        if type(identity) is not _StorageId or keys != [identity.key]:
            raise ValueError("a torch storage that is not one")
        count, dtype = identity.count, identity.dtype
        if int.from_bytes(source.read(8), "little") != count or source.left != count * dtype.itemsize:
            raise ValueError(f"a torch storage whose size is not that of its {len(data)} bytes")
        content = bytearray(source.read(source.left))
        if dtype == torch.bool:
            _check_booleans(content)
        return _Storage(torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype))


def _check_booleans(data: bytes | bytearray) -> None:
    if data.translate(None, b"\0\1"):
        raise ValueError("booleans that are neither 0 nor 1")


def _dtype(kind: Any = None, *_: Any) -> _Dtype:
    if type(kind) is not str or kind not in (*NUMPY_KINDS, *OBJECTS):
        shown = ascii(kind)[:30] if type(kind) is str else type(kind).__name__
        raise ValueError(f"the dtype {shown} is refused: the file may only hold arrays of numbers")
    return _Dtype(kind)


def _parameter(data: Any = None, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter that is no tensor")
    return data


def _tensor(storage: Any = None, offset: Any = None, size: Any = None, stride: Any = None, *_: Any) -> Tensor:
    if type(storage) is not _Storage or type(size) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor without a storage, a size or strides")
    elements = _elements(size)
    steps = len(size) == len(stride) and all(type(step) is int and 0 <= step <= MAX_LENGTH for step in stride)
    if not steps or type(offset) is not int or offset < 0:
        raise ValueError("a tensor with strides or an offset that are none")
    stored = storage.flat.numel()
    last = offset + sum((length - 1) * step for length, step in zip(size, stride)) if elements else offset - 1
    if last >= stored or elements > max(stored, MAX_EXPANDED):
        raise ValueError(f"a tensor of size {size} that does not lie in the {stored} elements of its storage")
    return storage.flat.as_strided(size, stride, offset)


def _elements(shape: Any) -> int:
    """How many a shape has; ValueError if it is none or one that no file holds."""
    if type(shape) is not tuple or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a shape that is none, or has more than {MAX_DIMENSIONS} dimensions")
    if not all(type(length) is int and 0 <= length <= MAX_LENGTH for length in shape):
        raise ValueError(f"a shape with a side that is no number from 0 to {MAX_LENGTH}")
    return math.prod(shape)


def _entry(key: str, value: Any) -> Entry:
    if isinstance(value, _Array):
        value = value.value
    if type(value) in (bool, int, float) and (type(value) is not int or -(2**63) <= value < 2**63):
        return np.asarray(value)
    if not isinstance(value, np.ndarray | Tensor):
        raise ValueError(f"{key[:100]!r} is refused: the file may only hold arrays and tensors")
    return value
