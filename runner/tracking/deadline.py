"""Work that is given up when it takes too long, or that Ctrl-C must not cut in two."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

ANSWER_SECONDS = 8  # how long a store may take to answer
T = TypeVar("T")


def within(seconds: float | None, work: Callable[[], T]) -> T:
    """What `work` returns or raises; TimeoutError when it takes longer (null: it may take as long as it wants).

    It is done in a thread that ends with the process. So what waits for a socket, which cannot be stopped, is left
    behind, and an interruption, which reaches the main thread only, lets it come to its end.
    """
    answers: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def answer() -> None:
        try:
            answers.put((work(), None))
        except BaseException as error:  # it is raised below
            answers.put((None, error))

    Thread(target=answer, daemon=True).start()
    try:
        value, error = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]
