"""What a user is told in one line when a run cannot start, or cannot go on."""

from __future__ import annotations


class Unavailable(ValueError):
    """Something the run needs is not here; the message says what, and the exact next step."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().split("\n")[0]
