"""Dictionaries in .npy files: all that np.save writes is read, and nothing of a hostile file happens."""

from __future__ import annotations

import codecs
import collections
import copyreg
import io
import os
import pickle
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slimrun.msmodelslim import npy, pickle_machine, pickle_writer
from slimrun.ops.files import WEIGHT_MODE

RECONSTRUCT = np.zeros(0).__reduce__()[0]
HEADER = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
MANY: dict[str, npy.Entry] = {
    "int8": np.arange(-6, 6, dtype=np.int8).reshape(3, 4),
    "big-endian": np.arange(3, dtype=">i4"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(20, dtype=np.uint16)[::3],
    "0-d": np.array(5),
    "empty": np.zeros((0, 3), np.int8),
    "float16": np.array([1.5, -2], np.float16),
    "bool": np.array([True, False]),
    "larger": np.arange(10_000, dtype=np.int64),
    "t.int8": torch.arange(-3, 3, dtype=torch.int8),
    "t.int32": torch.arange(3, dtype=torch.int32),
    "t.int64": torch.tensor(3),
    "t.float16": torch.tensor([1.5], dtype=torch.float16),
    "t.bfloat16": torch.ones(2, 2, dtype=torch.bfloat16),
    "t.float32": torch.linspace(0, 1, 5),
    "t.bool": torch.tensor([True, False]),
    "t.transposed": torch.arange(6, dtype=torch.int8).reshape(2, 3).T,
    "t.slice": torch.arange(20)[3::3],
    "t.expanded": torch.ones(1).expand(5),
    "t.empty": torch.zeros(0, 4, dtype=torch.float16),
    "t.larger": torch.arange(10_000),
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(HEADER + content)
    return path


def dumped(content: Any, protocol: int = 4) -> bytes:
    outer = np.empty((), object)
    outer[()] = content
    return pickle.dumps(outer, protocol)


def same(found: Any, expected: Any) -> bool:
    native = expected.dtype.newbyteorder("=") if isinstance(expected, np.ndarray) else expected.dtype
    if type(found) is not type(expected) or found.dtype != native or found.shape != expected.shape:
        return False
    return bool((found == expected).all())


def test_what_is_saved_is_read_back_by_both_readers(tmp_path: Path) -> None:
    path = tmp_path / "x.weights"
    for _ in range(2):  # the second replaces a read-only file
        npy.save(path, MANY)
    assert [file.name for file in tmp_path.iterdir()] == ["x.weights"]
    assert stat.S_IMODE(path.stat().st_mode) == WEIGHT_MODE == 0o400
    with open(path, "rb") as stream:
        theirs = np.load(stream, allow_pickle=True).item()
    ours = npy.load(path)
    assert list(ours) == list(theirs) == list(MANY)
    for key, value in MANY.items():
        assert same(ours[key], value), key
        assert same(theirs[key], value), key
        if isinstance(value, np.ndarray):
            ours[key][...] = 0


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        npy.save(tmp_path / name, {key: value.clone() if isinstance(value, torch.Tensor) else value.copy()
                                   for key, value in MANY.items()})  # fmt: skip
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    found = npy.load(write(tmp_path / "x.npy", dumped(MANY, protocol)))
    assert all(same(found[key], value) for key, value in MANY.items())


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_files_of_numpy_1_and_2_are_read(tmp_path: Path, core: bytes) -> None:
    content = dumped(MANY, 3).replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core)
    found = npy.load(write(tmp_path / "x.npy", content))
    assert all(same(found[key], value) for key, value in MANY.items())


def test_what_numpy_saves_of_a_state_dict_is_read(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3)).state_dict()
    np.save(tmp_path / "state.npy", state)
    found = npy.load(tmp_path / "state.npy")
    assert list(found) == list(state)
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_parameters_become_tensors_and_numbers_arrays(tmp_path: Path) -> None:
    content = {"p": torch.nn.Parameter(torch.ones(2)), "f": np.float32(2), "i": 3, "x": 0.5, "b": np.bool_(True)}
    found = npy.load(write(tmp_path / "x.npy", dumped(content)))
    assert type(found["p"]) is torch.Tensor
    assert not found["p"].requires_grad
    assert same(found["f"], np.array(2, np.float32))
    assert same(found["b"], np.array(True))
    assert [found["i"].item(), found["x"].item()] == [3, 0.5]


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.text(max_size=20),
        hnp.arrays(
            st.one_of(hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes(sizes=(16, 32, 64))),
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
        ),
        max_size=4,
    )
)
def test_any_arrays_survive(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.npy"
    npy.save(path, content)
    found = npy.load(path)
    assert list(found) == list(content)
    for key, value in content.items():
        native = value.astype(value.dtype.newbyteorder("="))
        assert found[key].dtype == native.dtype
        assert found[key].shape == value.shape
        assert found[key].tobytes() == native.tobytes()  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [{"a": "text"}, {"a": 3}, {1: np.zeros(1)}])
def test_save_refuses_what_load_would(tmp_path: Path, content: Any) -> None:
    with pytest.raises(TypeError, match="expected a name and an array or a tensor"):
        npy.save(tmp_path / "x.npy", content)
    assert not list(tmp_path.iterdir())


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
        message, found = "", {}
        try:
            found = npy.load(write(tmp_path / "x.npy", bytes(content)))
        except ValueError as error:
            message = str(error)
        assert "\n" not in message
        assert len(message) < 400
        assert all(isinstance(value, np.ndarray | torch.Tensor) for value in found.values())
