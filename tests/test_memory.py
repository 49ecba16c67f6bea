"""Freed memory goes back to the system when asked to."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import numpy as np
import pytest

from slimrun.ops.memory import give_back

PIECES, SIZE = 2000, 100_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_lies_between_things_that_stay_is_given_back() -> None:
    pieces = [np.ones(SIZE, np.uint8) for _ in range(PIECES)]
    kept = pieces[::20]
    del pieces
    before = resident()
    give_back()
    assert resident() < before - 0.5 * PIECES * SIZE
    assert all(int(piece.sum()) == SIZE for piece in kept)


def resident() -> int:
    """Bytes of main memory that this process takes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
