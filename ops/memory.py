"""Main memory: what is freed goes back to the system, and what does not fit lies in files that the system maps.

Weights of safetensors and .bin files are mapped as they are; what a run makes beside them is a matter of its `Room`.
Either way the system's own page cache decides what stays in memory, and `release` tells it what is not needed now.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
PAGES = Path("/proc/self/pagemap")  # a word a page. Source: Linux, Documentation/admin-guide/mm/pagemap.rst
PRESENT, SWAPPED, IN_FILE = 63, 62, 61  # its bits; the last is of pages of files, shared memory among them


def give_back() -> None:
    """Return what the C library keeps of freed memory to the system, in milliseconds.

    It keeps the more the longer small things that stay and large ones that go come by turns. Does nothing where the C
    library is not glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class Room:
    """Memory for tensors up to `limit` bytes; those that come beyond it lie in mapped files.

    The files have no name: nobody else can open them, and they are gone with their tensors or with the process,
    however it ends. They lie in `folder`, or where temporary files go.
    """

    def __init__(self, limit: float = math.inf, folder: Path | str | None = None) -> None:
        self.left = limit
        self.folder = folder
        self.full = False  # whether something did not fit

    def take(self, size: int) -> bool:
        """Whether so many bytes fit; they count until they are given back."""
        fits = size <= self.left
        self.full |= not fits
        self.left -= size if fits else 0
        return fits

    def give_back(self, size: int) -> None:
        """So many bytes that were taken are free."""
        self.left += size

    def empty(self, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        """A tensor with undefined content; OSError names the folder when its disk is full."""
        shape = torch.Size(shape)
        size = shape.numel() * dtype.itemsize
        if size >= PAGE and not self.take(size):
            return self._mapped(size).view(dtype).reshape(shape)
        tensor = torch.empty(shape, dtype=dtype)
        if size >= PAGE:
            self._until_gone(tensor)
        return tensor

    def keep(self, tensor: Tensor) -> Tensor:
        """The numbers of a dense tensor on the CPU: itself while it fits, else a copy in a file."""
        size = tensor.nbytes
        if size < PAGE:  # which would take as much
            return tensor
        if self.take(size):
            self._until_gone(tensor)
            return tensor
        copy = self._mapped(size).view(tensor.dtype).reshape(tensor.shape)
        copy.copy_(tensor.detach())
        release([copy])
        return copy

    def release(self, tensors: Iterable[Tensor]) -> None:
        """`release`, once something did not fit."""
        if self.full:
            release(tensors)

    def _until_gone(self, tensor: Tensor) -> None:
        weakref.finalize(tensor, self.give_back, tensor.nbytes).atexit = False

    def _mapped(self, size: int) -> Tensor:
        """uint8 [size] in a file of its own."""
        with tempfile.TemporaryFile(prefix="slimrun-", dir=self.folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)  # a disk that is full later would end the process
            except OSError as error:
                where = self.folder or tempfile.gettempdir()
                raise OSError(error.errno, f"no room for {size} bytes: {error.strerror}", str(where)) from error
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)


def release(tensors: Iterable[Tensor]) -> None:
    """Take the pages that these tensors have of mapped files out of this process's memory; reading brings them back.

    A page that no file has, since it was written and is not shared, stays. Nobody may write meanwhile. Does nothing
    on systems other than Linux.
    """
    if not PAGES.exists():
        return
    advise = ctypes.CDLL(None).madvise
    with PAGES.open("rb", buffering=0) as words:
        for tensor in tensors:
            if tensor.device.type == "cpu" and tensor.untyped_storage().nbytes():
                first, last = _pages(tensor)
                words.seek(8 * first)
                for begin, end in _droppable(np.frombuffer(words.read(8 * (last - first)), np.uint64)):
                    start = ctypes.c_void_p((first + begin) * PAGE)
                    advise(start, ctypes.c_size_t((end - begin) * PAGE), mmap.MADV_DONTNEED)


def _pages(tensor: Tensor) -> tuple[int, int]:
    """The first page of a tensor's numbers, and the one after the last."""
    span = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    end = start + (span + 1) * tensor.element_size() if tensor.numel() else start
    return start // PAGE, -(-end // PAGE)


def _droppable(pages: npt.NDArray[np.uint64]) -> list[tuple[int, int]]:
    """The stretches of pages without one that only memory has, where a file has some."""
    present, swapped, in_file = (pages >> np.uint64(bit) & np.uint64(1) == 1 for bit in (PRESENT, SWAPPED, IN_FILE))
    if not np.any(present & in_file):
        return []
    safe = ~swapped & (in_file | ~present)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], safe, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]
