"""Memory: freed memory goes back when asked to; what has no room lies in files, and no number of it is ever lost."""

from __future__ import annotations

import errno
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from slimrun.ops import memory
from slimrun.ops.memory import PAGE, PAGES, Room, give_back, release

PIECES, SIZE = 2000, 100_000
MANY = 4 * PAGE  # numbers of a tensor of several pages, float32
ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="pages are seen on Linux")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_lies_between_things_that_stay_is_given_back() -> None:
    pieces = [np.ones(SIZE, np.uint8) for _ in range(PIECES)]
    kept = pieces[::20]
    del pieces
    before = resident()
    give_back()
    assert resident() < before - 0.5 * PIECES * SIZE
    assert all(int(piece.sum()) == SIZE for piece in kept)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("scarce", [True, False])
def test_large_pieces_go_back_at_once_when_memory_is_short(scarce: bool) -> None:
    # a process of its own: where others left holes in the heap, pieces lie in these and stay
    script = LARGE_PIECES.replace("SCARCE", str(scarce))
    freed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert (int(freed) > 10 * (4 << 20)) == scarce  # of 19


LARGE_PIECES = f"""
import numpy as np, torch
from slimrun.ops.memory import Room
from tests.test_memory import resident

np.ones(24 << 20, np.uint8)  # freed at once; glibc keeps what is smaller than this from here on
assert Room(0, scarce=SCARCE).keep(large := torch.ones({MANY})) is not large
pieces = [np.ones(4 << 20, np.uint8) for _ in range(20)]
kept = pieces[-1]
before = resident()
del pieces
assert int(kept.sum()) == 4 << 20
print(before - resident())
"""


def resident() -> int:
    """Bytes of main memory that this process takes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@LINUX
def test_what_has_no_room_takes_no_memory_once_it_is_released(tmp_path: Path) -> None:
    room = Room(SIZE, tmp_path)
    small, large = torch.ones(PAGE), torch.arange(100 * SIZE)
    assert room.keep(small) is small
    before = resident()
    kept = room.keep(large)
    assert resident() < before + 0.1 * large.nbytes
    assert torch.equal(kept, large)
    assert resident() > before + 0.9 * large.nbytes
    room.release([kept])
    assert resident() < before + 0.1 * large.nbytes
    assert torch.equal(kept, large)
    assert list(tmp_path.iterdir()) == [], "the file has no name"


def test_memory_counts_until_its_tensor_is_gone() -> None:
    room = Room(4 * MANY)
    first = room.empty([MANY], torch.float32)
    del first
    kept = torch.ones(MANY)
    assert room.keep(kept) is kept
    assert not room.full
    assert room.keep(other := torch.ones(MANY)) is not other
    assert room.full


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the tensors "one" and "two" [MANY], which share a page."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({"one": torch.rand(MANY), "two": torch.rand(MANY)}, path)
    return path


@LINUX
@given(st.data())
def test_no_write_is_lost(weights: Path, data: st.DataObject) -> None:
    """In memory, in the files of a room, over a mapped file that stays as it is: what was written is read again."""
    mapped, stored = load_file(weights), weights.read_bytes()
    kept = [torch.rand(MANY), Room(0).keep(torch.rand(MANY)), Room(0).empty([MANY], torch.float32), *mapped.values()]
    expected = [tensor.clone() for tensor in kept]
    places = st.tuples(st.integers(0, len(kept) - 1), st.integers(0, MANY), st.integers(0, MANY))
    for value in range(data.draw(st.integers(1, 8))):
        number, begin, end = data.draw(places)
        kept[number][begin:end] = expected[number][begin:end] = value
        number, begin, end = data.draw(places)
        release([kept[number][begin:end]])
    release(kept)
    assert all(map(torch.equal, kept, expected))
    assert weights.read_bytes() == stored


@LINUX
def test_mapped_weights_are_released_but_for_what_was_written(weights: Path) -> None:
    two = load_file(weights)["two"]
    two.view(-1, PAGE)[1] = 7  # it does not begin with a page
    release([two])
    written = PAGE * two.element_size()
    assert written <= in_memory(two) <= written + PAGE
    assert bool((two.view(-1, PAGE)[1] == 7).all())


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match=rf"no room for {4 * MANY} bytes: No space left on device: '{tmp_path}'"):
        Room(0, tmp_path).keep(torch.ones(MANY))


def in_memory(tensor: Tensor) -> int:
    """Bytes of the tensor's pages, and of the first and last one whole, that are in memory."""
    first = tensor.data_ptr() // PAGE
    last = -(-(tensor.data_ptr() + tensor.nbytes) // PAGE)
    return pages_in_memory(first, last)


def pages_in_memory(first: int, last: int) -> int:
    """Bytes of the pages from the first to before the last that are in memory."""
    with PAGES.open("rb", buffering=0) as words:
        words.seek(8 * first)
        return PAGE * int((np.frombuffer(words.read(8 * (last - first)), np.int64) < 0).sum())


def test_free_memory_is_what_the_group_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    whole = memory.free_memory()
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 100000\ninactive_file 50000\n")
    assert memory.free_memory() == 450_000 < whole
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory() > 450_000
