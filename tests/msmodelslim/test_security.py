"""SafeWriteUmask: files of their owner alone, and the old umask afterwards whatever happens."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from slimrun.msmodelslim.security import SafeWriteUmask


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    previous = os.umask(0o022)
    yield
    assert os.umask(previous) == 0o022


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_np_save_inside_leaves_a_file_of_mode_0400(tmp_path: Path) -> None:
    with SafeWriteUmask():
        np.save(tmp_path / "quant_weight.npy", {"a": np.zeros(3)})  # type: ignore[arg-type]
    (tmp_path / "after").touch()
    assert mode(tmp_path / "quant_weight.npy") == 0o400
    assert mode(tmp_path / "after") == 0o644


def test_the_umask_comes_back_after_an_exception_and_when_nested(tmp_path: Path) -> None:
    guard = SafeWriteUmask(0o027)
    with pytest.raises(KeyError), guard:
        raise KeyError
    with guard, guard, SafeWriteUmask():
        (tmp_path / "inner").touch()
    assert mode(tmp_path / "inner") == 0o400


@pytest.mark.parametrize(
    ("value", "error"), [("377", TypeError), (True, TypeError), (-1, ValueError), (512, ValueError)]
)
def test_a_wrong_umask_is_refused(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="umask"):
        SafeWriteUmask(value)  # type: ignore[arg-type]
