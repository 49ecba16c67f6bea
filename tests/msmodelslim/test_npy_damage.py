"""What is no file of arrays, or a hostile or damaged one, is refused in one line, and nothing happens."""

from __future__ import annotations

import codecs
import collections
import copyreg
import io
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimrun.msmodelslim import npy, pickle_machine, pickle_writer

from .test_npy import HEADER, MANY, RECONSTRUCT, dumped, write


class Call:
    """Pickles as a call, and a state for its result."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts

    def __call__(self) -> None:
        """pickle wants what it calls to be callable."""


def storage(tensor: torch.Tensor) -> Any:
    return tensor._typed_storage()  # type: ignore[no-untyped-call]


def hostile(path: Path) -> dict[str, Any]:
    """Name -> an object whose unpickling makes the file `path`."""
    source = f"open({str(path)!r}, 'w').close()"
    evil = Call(exec, source)
    return {
        "os.system": Call(os.system, f"touch {path}"),
        "builtins.exec": evil,
        "builtins.eval": Call(eval, source),
        "builtins.open": Call(open, str(path), "w"),
        "pathlib": Call(Path.touch, path),
        "getattr": Call(Call(getattr, Call(__import__, "os"), "system"), f"touch {path}"),
        "copyreg": Call(copyreg._reconstructor, evil, object, None),  # type: ignore[attr-defined]
        "reconstruct of another class": Call(RECONSTRUCT, evil, (0,), b"b"),
        "array of objects": np.array([evil, 1], dtype=object),
        "state of an array": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=evil),
        "in a list": [[{"deep": (evil,)}]],
        "in a storage": Call(torch.storage._load_from_bytes, pickle.dumps(evil, 2)),
        "behind a storage's magic": Call(
            torch.storage._load_from_bytes,
            pickle.dumps(pickle_writer.STORAGE_START[0], 2) + pickle.dumps(1001, 2) + pickle.dumps(evil, 2),
        ),
        "in the hooks of a tensor": Call(
            torch._utils._rebuild_tensor_v2, storage(torch.ones(2)), 0, (2,), (1,), False, evil
        ),
        "torch.load": Call(torch.load, io.BytesIO(pickle.dumps(evil))),
        "np.load": Call(np.load, "x.npy", None, True),
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", hostile(Path("x")))
def test_a_hostile_file_is_refused_and_nothing_happens(tmp_path: Path, name: str, protocol: int) -> None:
    made = tmp_path / "made"
    path = write(tmp_path / "x.npy", dumped({"layer": hostile(made)[name]}, protocol))
    with pytest.raises(ValueError, match=r"x\.npy: .*(refused|a torch storage that|is damaged)") as caught:
        npy.load(path)
    assert "\n" not in str(caught.value)
    assert not made.exists()


def test_the_same_file_is_harmful_to_pickle(tmp_path: Path) -> None:
    made = tmp_path / "made"
    path = write(tmp_path / "x.npy", dumped({"layer": hostile(made)["builtins.exec"]}))
    with pytest.raises(ValueError, match=r"exec is refused: the file may only hold arrays and tensors"):
        npy.load(path)
    assert not made.exists()
    np.load(path, allow_pickle=True)
    assert made.exists()


I4 = np.dtype("<i4")
WRONG: dict[str, Any] = {
    "too little data": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2,), I4, False, b"\0" * 7)),
    "a huge shape": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2**40,), I4, False, b"")),
    "a product that overflows": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2**31,) * 3, I4, False, b"")),
    "a negative shape": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1, -1), I4, False, b"\0" * 4)),
    "a shape of booleans": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (True,), I4, False, b"\0" * 4)),
    "many dimensions": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,) * 99, I4, False, b"\0" * 4)),
    "a state that is none": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, 2, 3)),
    "no state": Call(RECONSTRUCT, np.ndarray, (0,), b"b"),
    "text": np.array(["a"]),
    "a record": np.zeros(2, [("a", "i4"), ("b", "f4")]),
    "a date": np.array(["2026-01-01"], "datetime64[D]"),
    "a boolean of 2": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("?"), False, b"\2")),
    "encode to utf-8": Call(codecs.encode, "a", "utf-8"),
    "a storage as a value": storage(torch.ones(2)),
    "an offset beyond": Call(torch._utils._rebuild_tensor_v2, storage(torch.ones(2)), 2, (1,), (1,), False, {}),
    "a size beyond": Call(torch._utils._rebuild_tensor_v2, storage(torch.ones(2)), 0, (3,), (1,), False, {}),
    "a stride beyond": Call(torch._utils._rebuild_tensor_v2, storage(torch.ones(2)), 0, (2,), (2,), False, {}),
    "a negative stride": Call(torch._utils._rebuild_tensor_v2, storage(torch.ones(2)), 1, (2,), (-1,), False, {}),
    "a huge expansion": Call(torch._utils._rebuild_tensor_v2, storage(torch.ones(1)), 0, (2**31,), (0,), False, {}),
    "many arguments": Call(torch._utils._rebuild_parameter, torch.ones(1), *range(9)),
    "no storage": Call(torch._utils._rebuild_tensor_v2, None, 0, (2,), (1,), False, {}),
    "a parameter of nothing": Call(torch._utils._rebuild_parameter, None, False, {}),
    "an ordered dict of pairs": collections.OrderedDict(a=1),
    "a huge number": 1 << 100,
    "text as a value": "text",
    "nothing": None,
    "a set": {1, 2},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_array_or_tensor_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x.npy", dumped({"layer": WRONG[name]}))
    with pytest.raises(ValueError, match=r"x\.npy: ") as caught:
        npy.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_storage_may_not_claim_more_than_it_holds(tmp_path: Path) -> None:
    content = dumped({"layer": torch.ones(3)}).replace(b"cpuq\x03K\x03", b"cpuq\x03K\x7f")
    with pytest.raises(ValueError, match="a torch storage whose size is not that of its"):
        npy.load(write(tmp_path / "x.npy", content))


RAW = {
    "an attribute of a function": b"\x80\x02c_codecs\nencode\n}X\x0c\x00\x00\x00__defaults__Nsb.",
    "a slot of a class": b"\x80\x02cnumpy\nndarray\nN}X\x07\x00\x00\x00__new__Ns\x86b.",
    "a new object": b"\x80\x02cnumpy\nndarray\nK\x01\x85\x81.",
    "an instance": b"\x80\x02(inumpy\nndarray\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02Pid\n.",
    "an outside buffer": b"\x80\x05\x97.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
    "a line break in a name": b"\x80\x04\x8c\x05num\ny\x8c\x01a\x93.",
    "a tuple as a key": b"\x80\x02}))" + b"\x85" * 1000 + b"s.",
    "numbers as keys": b"\x80\x02}K\x01K\x02s.",
    "deep": b"\x80\x02)" + b"\x85" * 30_000 + b".",
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "a memo of 2^31": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a frame of 2^62": b"\x80\x04\x95" + (1 << 62).to_bytes(8, "little") + b"N.",
    "bytes of 2^40": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b".",
    "a bytearray of 2^40": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
    "a number of 2^31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "an empty stack": b"\x80\x02.",
    "no mark": b"\x80\x02NNt.",
    "a pop below the mark": b"\x80\x02]((N(a.",
    "an unknown operation": b"\x80\x02\xff.",
    "no end": b"\x80\x02N",
    "nothing": b"",
    "text that is no utf-8": b"\x80\x04\x8c\x01\xff.",
}


@pytest.mark.parametrize("name", RAW)
def test_a_pickle_by_hand_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"x\.npy: ") as caught:
        npy.load(write(tmp_path / "x.npy", RAW[name]))
    assert "\n" not in str(caught.value)


def test_data_referred_to_again_and_again_is_no_bomb(tmp_path: Path) -> None:
    """One array's state, a thousand times: refused when it is more than the file could hold."""
    small = np.zeros(4000, np.int8)
    again = [Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=small.__reduce__()[2]) for _ in range(2)]
    assert npy.load(write(tmp_path / "x.npy", dumped(dict(zip("ab", again)))))
    state = small.__reduce__()[2]
    many = {str(i): Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=state) for i in range(1000)}
    with pytest.raises(ValueError, match="claims more data than it has bytes"):
        npy.load(write(tmp_path / "x.npy", dumped(many)))


def test_more_operations_than_any_model_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "MAX_OPERATIONS", 1000)
    with pytest.raises(ValueError, match="has more than 1000 operations"):
        npy.load(write(tmp_path / "x.npy", b"\x80\x02" + b"]" * 2000 + b"."))


def saved(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no numpy file of a dictionary: is truncated"),
        (b"PK\x03\x04 an archive", "is no numpy file of a dictionary: the magic string is not correct"),
        (b"\x93NUMPY\x07\x00", r"version \(7, 0\)"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "is truncated"),
        (b"\x93NUMPY\x01\x00\x05\x00((((\n", "is no numpy file of a dictionary"),
        (b"\x93NUMPY\x01\x00\x84\x03" + b"-" * 899 + b"\n", "is no numpy file of a dictionary"),
        (saved(np.zeros(3)), r"holds a plain array \(float64, shape \(3,\)\)"),
        (saved(np.array([{}, {}])), r"holds a plain array \(object, shape \(2,\)\)"),
        (HEADER + dumped([1]), "holds no dictionary"),
        (HEADER + pickle.dumps({"a": 1}), "holds no dictionary"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        npy.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.npy: is not a file"):
        npy.load(tmp_path / "nothing.npy")
    with pytest.raises(ValueError, match="is not a file"):
        npy.load(tmp_path)


SMALL = {key: MANY[key] for key in ("int8", "big-endian", "empty", "t.int8", "t.bfloat16", "t.transposed")}


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    content = HEADER + dumped(SMALL)
    path = tmp_path / "x.npy"
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"x\.npy: "):
            npy.load(path)


def flipped(content: bytearray, source: random.Random) -> None:
    content[source.randrange(len(content))] = source.randrange(256)


def removed(content: bytearray, source: random.Random) -> None:
    start = source.randrange(len(content))
    del content[start : start + source.randrange(1, 9)]


def repeated(content: bytearray, source: random.Random) -> None:
    start, at = source.randrange(len(content)), source.randrange(len(content))
    content[at:at] = content[start : start + source.randrange(40)]


@pytest.mark.parametrize("change", [flipped, removed, repeated])
def test_a_damaged_file_gives_arrays_or_an_error_in_one_line(
    tmp_path: Path, change: Callable[[bytearray, random.Random], None]
) -> None:
    source = random.Random(0)
    contents = [dumped(SMALL, protocol) for protocol in (2, 3, 4, 5)]
    for _ in range(400):
        content = bytearray(source.choice(contents))
        for _ in range(source.choice([1, 1, 3])):
            change(content, source)
        message, loaded = "", {}
        try:
            loaded = npy.load(write(tmp_path / "x.npy", bytes(content)))
        except ValueError as error:
            message = str(error)
        assert "\n" not in message
        assert len(message) < 400
        assert all(isinstance(value, np.ndarray | torch.Tensor) for value in loaded.values())
