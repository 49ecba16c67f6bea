"""What the seed's scripts take from `ascend_utils.common.security`."""

from __future__ import annotations

import os


class SafeWriteUmask:
    """`with SafeWriteUmask(): np.save(...)`: files made inside are readable by their owner and nobody else (0400).

    The umask belongs to the process: other threads that make files meanwhile make them with it too.
    """

    def __init__(self, umask: int = 0o377) -> None:
        if not isinstance(umask, int) or isinstance(umask, bool):
            raise TypeError(f"umask must be int, not {type(umask).__name__}.")
        if not 0 <= umask <= 0o777:
            raise ValueError(f"umask = {umask:#o} is out of range; allowed: 0 to 0o777.")
        self.umask = umask
        self._previous: list[int] = []

    def __enter__(self) -> SafeWriteUmask:
        self._previous.append(os.umask(self.umask))
        return self

    def __exit__(self, *_: object) -> None:
        os.umask(self._previous.pop())
