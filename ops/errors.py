"""What a user is told in one line when a run cannot start, or cannot go on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class Unavailable(ValueError):
    """Something the run needs is not here; the message says what, and the exact next step."""


def first_line(error: BaseException) -> str:
    """Why it was raised, in one line: the first of its message, or of what caused it where that only announces it."""
    told, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, KeyError):
        return f"{told} is not found"
    if not told.endswith(":"):
        return told
    if error.__cause__ is not None and str(error.__cause__) in str(error):
        return first_line(error.__cause__)
    return " ".join([told, *more[:1]])


def nearest(pattern: str, names: Sequence[str]) -> str:
    """End of an error line: which names come near the one that is not there."""
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
    return f"; near it: {', '.join(near)}" if near else f"; the first are: {', '.join(list(names)[:3])}"
