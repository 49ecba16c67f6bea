"""The stack machine that a pickle is a program for, with nothing but data in it: reading one executes nothing.

`Machine` has the opcodes that build dicts, lists, tuples, strings, bytes and numbers. A name of the pickle is looked up
among those that the caller gives, never imported, so what it may call are functions of ours; only an `Unfinished` takes
a state, and so no attribute is ever set. Every other opcode is an error, as is any size beyond the bytes that are
there: pickle's own loading code never sees them. (Opcodes: the standard library's `pickletools`, which documents each.)
"""

from __future__ import annotations

import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any, BinaryIO, cast

MAX_OPERATIONS = 1 << 21  # 35 a tensor: 60,000 tensors; without data they can build 0.3 GB, in ten seconds
MAX_ARGUMENTS = 8  # of a call; more, again and again, would take hours
LONG_BYTES = 1 << 12  # bytes of this size are an array's data

PUSHES = {  # opcodes whose argument is the value; those of protocol 0, which are lines of text, np.save never wrote
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class Source:
    """The bytes of a file; what is longer than the rest is an error before it is a buffer."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self.left = size
        self.budget = 2 * size  # bytes of data to work on: each byte of a file once as text and once as an array

    def read(self, size: int) -> bytes:
        """So many bytes, or ValueError."""
        data = self._stream.read(size) if 0 <= size <= self.left else b""
        if len(data) != size:
            raise ValueError("is truncated")
        self.left -= size
        return data

    def readline(self) -> bytes:
        """A line, of a name: a backslash would be an escape to `pickletools`."""
        line = self._stream.readline(min(self.left, LONG_BYTES))
        self.left -= len(line)
        if b"\\" in line:
            raise ValueError("is damaged: a name with a backslash")
        return line

    def spend(self, data: bytes | bytearray) -> None:
        """Count what is made of the file's data, which may refer to the same again and again; ValueError for more."""
        self.budget -= len(data)
        if self.budget < 0:
            raise ValueError("claims more data than it has bytes")

    def encode(self, text: Any = None, encoding: Any = None, *_: Any) -> bytes:
        """Bytes, as protocols 0 to 2 write them: as text."""
        if type(text) is not str or type(encoding) is not str or encoding != "latin1":
            raise ValueError("_codecs.encode is refused but of text to latin1: the file may only hold arrays")
        data = text.encode("latin1")
        self.spend(data)
        return data


class Unfinished(ABC):
    """A value that a pickle makes first and gives its state later."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Take the state; ValueError if it is none."""


class Machine:
    """Runs one pickle. `names` is all that it may name, `persistent` makes the object of a persistent id.

    What it calls gets up to MAX_ARGUMENTS positional arguments of any type, and has to check them.
    """

    def __init__(self, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None = None) -> None:
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, source: Source) -> Any:
        """The value of the pickle that `source` goes on with; ValueError says what is wrong with it."""
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
                if type(target) is dict and type(state) is dict and state.keys() == {"_metadata"}:
                    return  # a state_dict's: the versions of torch's modules
                if not isinstance(target, Unfinished):
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

    def _pop(self) -> Any:
        self._top()
        return self.stack.pop()

    def _top(self, kind: type = object) -> Any:
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) <= floor or not isinstance(self.stack[-1], kind):
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


def _is_data(value: Any) -> bool:
    """Long bytes, or a tuple of arguments with some."""
    parts = value[:MAX_ARGUMENTS] if type(value) is tuple else (value,)
    return any(type(part) in (bytes, bytearray) and len(part) >= LONG_BYTES for part in parts)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn. Only text is a key: hashing a deep tuple overflows the C stack, integers can be chosen
    to collide."""
    if len(items) % 2 or not all(type(key) is str for key in items[::2]):
        raise ValueError("a dictionary with keys that are no text is refused")
    return dict(zip(items[::2], items[1::2]))


def plain_names(source: Source) -> dict[str, Any]:
    """Names for a `Machine`: the plain data that protocols 0 to 2 can only write as calls."""

    def no_bytes(*arguments: Any) -> bytes:
        """b"" alone: all other bytes are written with _codecs.encode."""
        if arguments:
            raise ValueError("bytes of something are refused")
        return b""

    def no_hooks(*arguments: Any) -> dict[str, Any]:
        """The empty OrderedDict that each tensor comes with."""
        if arguments:
            raise ValueError("an OrderedDict of something is refused")
        return {}

    return {"_codecs.encode": source.encode, "__builtin__.bytes": no_bytes, "collections.OrderedDict": no_hooks}
