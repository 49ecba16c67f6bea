"""Dictionaries in .npy files: all that np.save writes is read, and nothing of a hostile file happens."""

from __future__ import annotations

import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slimrun.msmodelslim import npy
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


def same(value: Any, expected: Any) -> bool:
    native = expected.dtype.newbyteorder("=") if isinstance(expected, np.ndarray) else expected.dtype
    if type(value) is not type(expected) or value.dtype != native or value.shape != expected.shape:
        return False
    return bool((value == expected).all())


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
    loaded = npy.load(write(tmp_path / "x.npy", dumped(MANY, protocol)))
    assert all(same(loaded[key], value) for key, value in MANY.items())


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_files_of_numpy_1_and_2_are_read(tmp_path: Path, core: bytes) -> None:
    content = dumped(MANY, 3).replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core)
    loaded = npy.load(write(tmp_path / "x.npy", content))
    assert all(same(loaded[key], value) for key, value in MANY.items())


def test_what_numpy_saves_of_a_state_dict_is_read(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3)).state_dict()
    np.save(tmp_path / "state.npy", state)
    loaded = npy.load(tmp_path / "state.npy")
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_parameters_become_tensors_and_numbers_arrays(tmp_path: Path) -> None:
    content = {"p": torch.nn.Parameter(torch.ones(2)), "f": np.float32(2), "i": 3, "x": 0.5, "b": np.bool_(True)}
    loaded = npy.load(write(tmp_path / "x.npy", dumped(content)))
    assert type(loaded["p"]) is torch.Tensor
    assert not loaded["p"].requires_grad
    assert same(loaded["f"], np.array(2, np.float32))
    assert same(loaded["b"], np.array(True))
    assert [loaded["i"].item(), loaded["x"].item()] == [3, 0.5]


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
    loaded = npy.load(path)
    assert list(loaded) == list(content)
    for key, value in content.items():
        native = value.astype(value.dtype.newbyteorder("="))
        assert loaded[key].dtype == native.dtype
        assert loaded[key].shape == value.shape
        assert loaded[key].tobytes() == native.tobytes()  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [{"a": "text"}, {"a": 3}, {1: np.zeros(1)}])
def test_save_refuses_what_load_would(tmp_path: Path, content: Any) -> None:
    with pytest.raises(TypeError, match="expected a name and an array or a tensor"):
        npy.save(tmp_path / "x.npy", content)
    assert not list(tmp_path.iterdir())
