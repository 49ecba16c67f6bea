"""The next thing is read while the last one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Read = TypeVar("Read")


def ahead(read: Callable[[Key], Read], keys: Iterable[Key]) -> Iterator[Read]:
    """What `read` gives of each key, in their order; two are in memory at a time: this one, and the next.

    What it raises is raised when its turn comes.
    """
    waiting: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for key in keys:
            waiting.append(reader.submit(read, key))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
