"""Main memory: what is freed goes back to the system, and what does not fit lies in files that the system maps.

Weights of safetensors and .bin files are mapped as they are; what a run makes beside them is a matter of its `Room`.
Either way the system's own page cache decides what stays in memory, and `release` tells it what is not needed now.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import re
import sys
import tempfile
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
MAPPINGS = Path("/proc/self/maps")  # a line each: its addresses, four flags, an offset, a device, an inode, a name
PAGES = Path("/proc/self/pagemap")  # a word a page. Source: Linux, Documentation/admin-guide/mm/pagemap.rst
PRESENT, SWAPPED, IN_FILE = 63, 62, 61  # its bits; the last is of pages of files, shared memory among them
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # parameters of glibc's mallopt. Source: its malloc.h
HUGE_PAGE, KEPT = 2 << 20, 32 << 20  # bytes
CGROUP = Path("/sys/fs/cgroup")  # of this process. Source: Linux, Documentation/admin-guide/cgroup-v2.rst

Array = TypeVar("Array", bound=npt.NDArray[Any])
Numbers = Tensor | npt.NDArray[Any]  # an array being contiguous


def give_back() -> None:
    """Return what the C library keeps of freed memory to the system, in milliseconds.

    It keeps the more the longer small things that stay and large ones that go come by turns. Does nothing where the C
    library is not glibc.
    """
    _glibc("malloc_trim", 0)


def give_back_at_once() -> None:
    """From now on what is freed of a huge page or more goes back to the system then, which clears it anew each time.

    glibc itself raises that bound to 32 MiB as such pieces are freed, and then keeps several GB between the linears of
    a large model. Of smaller pieces it keeps 32 MiB. Does nothing where the C library is another.
    """
    _glibc("mallopt", MMAP_THRESHOLD, HUGE_PAGE)
    _glibc("mallopt", TRIM_THRESHOLD, KEPT)


def _glibc(function: str, *values: int) -> None:
    known = getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
    if known is not None:
        known(*values)


def free_memory() -> int:
    """Bytes of main memory that this process can still have."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, taken = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return free
    return max(0, min(free, limit - taken + (int(cached[1]) if cached else 0)))


class Room:
    """Memory for tensors up to `limit` bytes; those that come beyond it lie in mapped files.

    The files have no name once they are mapped: nobody else can open them, and they are gone with their tensors or with
    the process, however it ends. They lie in `folder`, or where temporary files go. `scarce` says whether memory is
    short where something does not fit, so that what is freed is to go back at once, which costs time.
    """

    def __init__(self, limit: float = math.inf, folder: Path | str | None = None, *, scarce: bool = True) -> None:
        self.left = limit
        self.folder = folder
        self.scarce = scarce
        self.full = False  # whether something did not fit
        self._lock = threading.RLock()  # what is collected meanwhile gives back

    def holds(self, owner: object, size: int) -> bool:
        """Whether memory has room for so many bytes, which then count until `owner` is gone."""
        if size < PAGE:  # a file would take as much
            return True
        with self._lock:
            fits = size <= self.left
            self.left -= size if fits else 0
            if not fits and not self.full:
                self.full = True
                if self.scarce:
                    give_back_at_once()
        if fits:
            weakref.finalize(owner, self._give_back, size).atexit = False
        return fits

    def empty(self, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        """A tensor with undefined content; OSError names the folder when its disk is full."""
        tensor = torch.empty(*shape, dtype=dtype)  # takes memory only once it is written
        return tensor if self.holds(tensor.untyped_storage(), tensor.nbytes) else self._mapped(tensor)

    def keep(self, tensor: Tensor) -> Tensor:
        """The numbers of a dense tensor: itself while it fits, or where it is not on the CPU, else a copy in a file."""
        if tensor.device.type != "cpu" or self.holds(tensor.untyped_storage(), tensor.nbytes):
            return tensor
        copy = self._mapped(tensor).copy_(tensor.detach())
        release([copy])
        return copy

    def keep_array(self, array: Array) -> Array:
        """Keep the numbers of an array, as `keep` does."""
        if self.holds(array, array.nbytes):
            return array
        copy = self._mapped(torch.from_numpy(array)).numpy()
        copy[...] = array
        release([copy])
        return cast(Array, copy)

    def release(self, numbers: Iterable[Numbers]) -> None:
        """`release` these tensors, once something did not fit."""
        if self.full:
            release(numbers)

    def passing(self, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same tensors; each leaves memory before the next comes, once something did not fit."""
        for name, tensor in named:
            yield name, tensor
            self.release([tensor])

    def _give_back(self, size: int) -> None:
        with self._lock:
            self.left += size

    def _mapped(self, like: Tensor) -> Tensor:
        """A tensor of that shape and kind in a file of its own."""
        with tempfile.NamedTemporaryFile(prefix="slimrun-", dir=self.folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, like.nbytes)  # a disk that is full later would end the process
            except OSError as error:
                where = str(self.folder or tempfile.gettempdir())
                raise OSError(error.errno, f"no room for {like.nbytes} bytes: {error.strerror}", where) from error
            # mmap of Python would keep a descriptor, and a process has few
            return torch.from_file(file.name, shared=True, size=like.numel(), dtype=like.dtype).reshape(like.shape)


def release(numbers: Iterable[Numbers]) -> None:
    """Take the pages that these numbers have of mapped files out of this process's memory; reading brings them back.

    A page that no file has, since it was written and is not shared, stays. Nobody may write meanwhile. Does nothing
    on systems other than Linux.
    """
    if not PAGES.exists():
        return
    advise = ctypes.CDLL(None).madvise
    with PAGES.open("rb", buffering=0) as words:
        for one in numbers:
            first, last = _pages(one)
            if first < last:
                words.seek(8 * first)
                for begin, end in _droppable(np.frombuffer(words.read(8 * (last - first)), np.uint64)):
                    start = ctypes.c_void_p((first + begin) * PAGE)
                    advise(start, ctypes.c_size_t((end - begin) * PAGE), mmap.MADV_DONTNEED)


def in_files(tensors: Iterable[Tensor]) -> list[bool]:
    """Of each tensor whether its numbers lie in a file that is mapped; True where the system does not tell."""
    if not MAPPINGS.exists():
        return [True for _ in tensors]
    lines = [line.split(maxsplit=5) for line in MAPPINGS.read_text().splitlines()]
    starts = [int(line[0].partition("-")[0], 16) for line in lines]
    return [lines[bisect_right(starts, tensor.data_ptr()) - 1][4] != "0" for tensor in tensors]


def _pages(numbers: Numbers) -> tuple[int, int]:
    """The first page of numbers in main memory, and the one after the last."""
    if isinstance(numbers, Tensor):
        if numbers.device.type != "cpu" or not numbers.numel():
            return 0, 0
        span = sum((size - 1) * step for size, step in zip(numbers.shape, numbers.stride(), strict=True)) + 1
        start, size = numbers.data_ptr(), span * numbers.element_size()
    else:
        start, size = numbers.ctypes.data, numbers.nbytes
    return start // PAGE, -(-(start + size) // PAGE)


def _droppable(pages: npt.NDArray[np.uint64]) -> list[tuple[int, int]]:
    """The stretches of pages without one that only memory has, where a file has some."""
    present, swapped, in_file = (pages >> np.uint64(bit) & np.uint64(1) == 1 for bit in (PRESENT, SWAPPED, IN_FILE))
    if not np.any(present & in_file):
        return []
    safe = ~swapped & (in_file | ~present)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], safe, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]
