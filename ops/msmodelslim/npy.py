"""Dictionaries of arrays and tensors in `.npy` files, as `np.save` leaves them, read without executing anything.

Such a file is a pickle, a program for a small stack machine. `load` is that machine with nothing but data in it: the
opcodes that build dicts, lists, tuples, strings, bytes and numbers, and of all functions that a pickle may call only
those of this file, which check every size against the bytes that are there. Neither pickle's nor numpy's nor torch's
own loading code sees the file. (Opcodes: the standard library's `pickletools`, which documents each.)
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import tokenize
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import torch
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from torch import Tensor

from ops.files import WEIGHT_MODE, replacing

Entry = NDArray[Any] | Tensor

MAX_OPERATIONS = 1 << 21  # 35 a tensor: 60,000 tensors; without data they can build 0.3 GB, in ten seconds
MAX_DIMENSIONS, MAX_LENGTH = 32, 1 << 31  # of a shape
MAX_EXPANDED = 1 << 20  # elements of a view with stride 0 that are not stored
MAX_HEADER = 1024  # bytes; that of a dictionary has 118
MAX_ARGUMENTS = 8  # of a call; more, again and again, would take hours
LONG_BYTES = 1 << 12  # bytes of this size are an array's data

NUMPY_KINDS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
OBJECTS = ("O8", "O4", "O")  # the array around the dictionary
STORAGES = {
    "Bool": torch.bool,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float": torch.float32,
    "Double": torch.float64,
}
STORAGE_START = (0x1950A86A20F9469CFC6C, 1001)  # magic and version that torch writes before a storage
PUSHES = {  # opcodes whose argument is the value; those of protocol 0, which are lines of text, np.save never wrote
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def save(path: str | Path, mapping: Mapping[str, Entry]) -> None:
    """Write the dictionary atomically, mode 0400; `np.load(path, allow_pickle=True).item()` and `load` read it.

    Values are kept as they are: a torch tensor stays one. TypeError for a key or a value of another type.
    """
    for key, value in mapping.items():
        if not isinstance(key, str) or not isinstance(value, np.ndarray | Tensor):
            raise TypeError(f"{key!r}: {type(value).__name__}, expected a name and an array or a tensor")
    with replacing(Path(path), WEIGHT_MODE) as scratch, scratch.open("wb") as stream:
        np.save(stream, cast(Any, dict(mapping)))  # through a stream: np.save adds .npy to the name of a path


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


class _Source:
    """The bytes of a file; what is longer than the rest is an error before it is a buffer."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self.left = size

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise ValueError("is truncated")
        self.left -= size
        data = self._stream.read(size)
        if len(data) != size:
            raise ValueError("is truncated")
        return data

    def readline(self) -> bytes:
        line = self._stream.readline(min(self.left, LONG_BYTES))
        self.left -= len(line)
        if b"\\" in line:
            raise ValueError("is damaged: a name with a backslash")
        return line


@dataclass
class _Dtype:
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

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.kind)


class _Array:
    """A numpy array on its way; one of objects keeps them apart, since no entry may be one."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        self.value: NDArray[Any] | None = None
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


@dataclass(frozen=True)
class _StorageId:
    """What is said of a storage before its bytes."""

    dtype: torch.dtype
    key: str
    count: int


class _Machine:
    """Runs one pickle. `names` is all that it may name, `persistent` makes the object of a persistent id."""

    def __init__(self, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None = None) -> None:
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, source: _Source) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(Any, source))):
            if count >= MAX_OPERATIONS:
                raise ValueError(f"has more than {MAX_OPERATIONS} operations")
            if opcode.name in PUSHES:
                self.stack.append(argument)
            elif opcode.name in CONSTANTS:
                self.stack.append(CONSTANTS[opcode.name])
            elif not self._remember(opcode.name, argument) and not self._collect(opcode.name):
                self._make(opcode.name, argument)
        return self._pop()

    def _remember(self, opcode: str, argument: Any) -> bool:
        """Marks and the memo; False if the opcode is about neither."""
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "MEMOIZE" | "BINPUT" | "LONG_BINPUT":
                value = self._top()
                # data is written once; to remember it would keep a second copy of the whole file in memory
                again = None if _is_data(value) else value
                self.memo[len(self.memo) if opcode == "MEMOIZE" else argument] = again
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise ValueError("is damaged: it refers to what it does not hold")
                self.stack.append(self.memo[argument])
            case _:
                return False
        return True

    def _collect(self, opcode: str) -> bool:
        """Tuples, lists and dicts; False if the opcode is about neither."""
        match opcode:
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(reversed([self._pop() for _ in range(int(opcode[-1]))])))
            case "TUPLE":
                self.stack.append(tuple(self._items()))
            case "EMPTY_LIST":
                self.stack.append([])
            case "APPEND" | "APPENDS":
                items = [self._pop()] if opcode == "APPEND" else self._items()
                self._top(list).extend(items)
            case "EMPTY_DICT":
                self.stack.append({})
            case "SETITEM" | "SETITEMS":
                items = [self._pop(), self._pop()][::-1] if opcode == "SETITEM" else self._items()
                self._top(dict).update(_pairs(items))
            case _:
                return False
        return True

    def _make(self, opcode: str, argument: Any) -> None:
        """What is made by a name: looked up among ours, called with a tuple, given its state."""
        match opcode:
            case "GLOBAL":
                self.stack.append(self._named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = self._pop(), self._pop()
                self.stack.append(self._named(module, name))
            case "REDUCE":
                arguments, function = self._pop(), self._pop()
                if not isinstance(function, FunctionType | MethodType) or type(arguments) is not tuple:
                    raise ValueError("is damaged: it calls what is no function")
                if len(arguments) > MAX_ARGUMENTS:
                    raise ValueError(f"a call with more than {MAX_ARGUMENTS} arguments is refused")
                self.stack.append(function(*arguments))
            case "BUILD":
                state, target = self._pop(), self._top()
                if not isinstance(target, _Dtype | _Array):
                    raise ValueError(f"the state of a {type(target).__name__} is refused: only arrays have one")
                target.build(state)
            case "BINPERSID" if self.persistent is not None:
                self.stack.append(self.persistent(self._pop()))
            case _:
                raise ValueError(f"the operation {opcode} is refused: the file may only hold arrays and tensors")

    def _named(self, module: Any, name: Any = "") -> Any:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name that is no text"
        if full not in self.names:
            shown = full[:100].encode("unicode_escape").decode()
            raise ValueError(f"{shown} is refused: the file may only hold arrays and tensors")
        return self.names[full]

    def _floor(self) -> int:
        return self.marks[-1] if self.marks else 0

    def _pop(self) -> Any:
        self._top()
        return self.stack.pop()

    def _top(self, kind: type = object) -> Any:
        if len(self.stack) <= self._floor() or not isinstance(self.stack[-1], kind):
            raise ValueError("is damaged: its operations do not fit together")
        return self.stack[-1]

    def _items(self) -> list[Any]:
        """What lies above the last mark."""
        if not self.marks:
            raise ValueError("is damaged: its operations do not fit together")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items


class _Reader:
    """One file: its bytes, and the functions that its pickle may call."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.source = _Source(stream, size)
        self.budget = 2 * size  # bytes of data to work on: each byte of a file once as text and once as an array
        self.names: dict[str, Any] = {
            "numpy.ndarray": _NDARRAY,
            "numpy.dtype": _dtype,
            "_codecs.encode": self._encode,
            "__builtin__.bytes": _no_bytes,
            "collections.OrderedDict": _no_hooks,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch.storage._load_from_bytes": self._storage,
        }
        for core in ("numpy.core", "numpy._core"):
            self.names |= {
                f"{core}.multiarray._reconstruct": self._reconstruct,
                f"{core}.multiarray.scalar": self._scalar,
                f"{core}.numeric._frombuffer": self._frombuffer,
            }

    def dictionary(self) -> dict[str, Entry]:
        self._header()
        root = _Machine(self.names).run(self.source)
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

    def array(self, data: Any, dtype: Any, shape: Any, fortran: bool = False) -> NDArray[Any]:
        """An array of its own memory from bytes, in this machine's byte order."""
        if type(dtype) is not _Dtype or dtype.kind not in NUMPY_KINDS:
            raise ValueError("an array of objects is refused: the file may only hold arrays and tensors")
        if type(data) not in (bytes, bytearray):
            raise ValueError("an array without data")
        number = dtype.numpy()
        if len(data) != _elements(shape) * number.itemsize:
            raise ValueError(f"an array of shape {shape} and dtype {number} with {len(data)} bytes of data")
        self._spend(data)
        if dtype.kind == "b1":
            _check_booleans(data)
        order: Literal["F", "C"] = "F" if fortran else "C"
        array: NDArray[Any] = np.empty(shape, number.newbyteorder("="), order)
        if data:
            array[...] = np.ndarray(shape, number, buffer=data, order=order)
        return array

    def _spend(self, data: bytes | bytearray) -> None:
        self.budget -= len(data)
        if self.budget < 0:
            raise ValueError("claims more data than it has bytes")

    def _encode(self, text: Any = None, encoding: Any = None, *_: Any) -> bytes:
        """Bytes, as protocols 0 to 2 write them."""
        if type(text) is not str or type(encoding) is not str or encoding != "latin1":
            raise ValueError("_codecs.encode is refused but of text to latin1: the file may only hold arrays")
        data = text.encode("latin1")
        self._spend(data)
        return data

    def _reconstruct(self, kind: Any = None, *_: Any) -> _Array:
        if kind is not _NDARRAY:
            raise ValueError("an array of another class is refused")
        return _Array(self)

    def _scalar(self, dtype: Any = None, data: Any = None, *_: Any) -> NDArray[Any]:
        return self.array(data, dtype, ())

    def _frombuffer(
        self, data: Any = None, dtype: Any = None, shape: Any = None, order: Any = "C", *_: Any
    ) -> NDArray[Any]:
        if type(order) is not str or order not in ("C", "F"):
            raise ValueError("an array of an unknown order")
        return self.array(data, dtype, shape, order == "F")

    def _storage(self, data: Any = None, *_: Any) -> _Storage:
        """The storage in torch's own serialization: magic, version, machine, its type and size, keys, the bytes."""
        if type(data) is not bytes:
            raise ValueError("a torch storage without data")
        self._spend(data)
        source = _Source(io.BytesIO(data), len(data))
        magic, protocol, machine = (_Machine({}).run(source) for _ in range(3))
        if type(magic) is not int or type(protocol) is not int or (magic, protocol) != STORAGE_START:
            raise ValueError("a torch storage that does not begin like one")
        if type(machine) is not dict or machine.get("little_endian") is not True:
            raise ValueError("a torch storage of another byte order")
        names = {f"torch.{name}Storage": dtype for name, dtype in STORAGES.items()}
        found = _Machine(names, _storage_id).run(source)
        keys = _Machine({}).run(source)
        alone = type(keys) is list and len(keys) == 1 and type(keys[0]) is str
        if type(found) is not _StorageId or not alone or keys[0] != found.key:
            raise ValueError("a torch storage that is not one")
        count, dtype = found.count, found.dtype
        if int.from_bytes(source.read(8), "little") != count or source.left != count * dtype.itemsize:
            raise ValueError(f"a torch storage whose size is not that of its {len(data)} bytes")
        content = bytearray(source.read(source.left))
        if dtype == torch.bool:
            _check_booleans(content)
        return _Storage(torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype))


_NDARRAY = object()  # what numpy.ndarray is here


def _check_booleans(data: bytes | bytearray) -> None:
    if data.translate(None, b"\0\1"):
        raise ValueError("booleans that are neither 0 nor 1")


def _dtype(kind: Any = None, *_: Any) -> _Dtype:
    if type(kind) is not str or kind not in (*NUMPY_KINDS, *OBJECTS):
        shown = ascii(kind)[:30] if type(kind) is str else type(kind).__name__
        raise ValueError(f"the dtype {shown} is refused: the file may only hold arrays of numbers")
    return _Dtype(kind)


def _no_bytes(*arguments: Any) -> bytes:
    """Protocols 0 to 2 write b"" so, all other bytes with _codecs.encode."""
    if arguments:
        raise ValueError("bytes of something are refused")
    return b""


def _no_hooks(*arguments: Any) -> dict[str, Any]:
    """The empty OrderedDict that each tensor comes with."""
    if arguments:
        raise ValueError("an OrderedDict of something is refused")
    return {}


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


def _storage_id(identifier: Any) -> _StorageId:
    """From ("storage", type, key, device, number of elements, view); the device does not matter here."""
    if type(identifier) is not tuple or len(identifier) != 6:
        raise ValueError("a torch storage with an unknown id")
    kind, dtype, key, _, count, view = identifier
    known = type(kind) is str and kind == "storage" and isinstance(dtype, torch.dtype) and type(key) is str
    if not known or type(count) is not int or count < 0 or view is not None:
        raise ValueError("a torch storage with an unknown id")
    return _StorageId(dtype, key, count)


def _elements(shape: Any) -> int:
    """How many a shape has; ValueError if it is none or one that no file holds."""
    if type(shape) is not tuple or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a shape that is none, or has more than {MAX_DIMENSIONS} dimensions")
    if not all(type(length) is int and 0 <= length <= MAX_LENGTH for length in shape):
        raise ValueError(f"a shape with a side that is no number from 0 to {MAX_LENGTH}")
    return math.prod(shape)


def _is_data(value: Any) -> bool:
    """Long bytes, or a tuple of arguments with some."""
    parts = value[:MAX_ARGUMENTS] if type(value) is tuple else (value,)
    return any(type(part) in (bytes, bytearray) and len(part) >= LONG_BYTES for part in parts)


def _pairs(items: Iterable[Any]) -> dict[Any, Any]:
    """Keys and values in turn. Only text is a key: hashing a deep tuple overflows the C stack, integers can be chosen
    to collide."""
    flat = list(items)
    if len(flat) % 2 or not all(type(key) is str for key in flat[::2]):
        raise ValueError("a dictionary with keys that are no text is refused")
    return dict(zip(flat[::2], flat[1::2]))


def _entry(key: str, value: Any) -> Entry:
    if isinstance(value, _Array):
        value = value.value
    if type(value) in (bool, int, float) and (type(value) is not int or -(2**63) <= value < 2**63):
        return np.asarray(value)
    if not isinstance(value, np.ndarray | Tensor):
        raise ValueError(f"{key[:100]!r} is refused: the file may only hold arrays and tensors")
    return value
