"""What a user is told in one line when a run cannot start, or cannot go on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class Unavailable(ValueError):
    """Something the run needs is not here; the message says what, and the exact next step."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().split("\n")[0]


def nearest(pattern: str, names: Sequence[str]) -> str:
    """End of an error line: which names come near the one that is not there."""
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
    return f"; near it: {', '.join(near)}" if near else f"; the first are: {', '.join(list(names)[:3])}"
