"""Main memory that is freed but still counts."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return what the C library keeps of freed memory to the system, in milliseconds.

    It keeps the more the longer small things that stay and large ones that go come by turns. Does nothing where the C
    library is not glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
