"""SIGTERM, which schedulers and containers send, ends a run like Ctrl-C; a second signal ends the process at once.

So does the first one, a little later, where a long computation does not let Python hear of it: whatever is written is
written to be cut off, and the next run goes on behind the last step that was noted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from slimrun.runner.status import FAILED

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 8.0  # containers are killed after 10; to factor a matrix, or read a long text, may take longer
CUT_OFF = "slimrun: interrupted in the middle of a long computation; run the same command again\n"

os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))  # a child's signals are its own


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block the first signal raises KeyboardInterrupt; one that the process ignores stays ignored.

    Where somebody handles SIGTERM already (this process's own start, a launcher), nothing changes.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = threading.Event()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        heard.set()
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        with _watched(heard):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watched(heard: threading.Event) -> Iterator[None]:
    """Meanwhile a signal ends the process unless it is `heard` in time: a thread waits for what the system writes."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        if os.read(reading, 1) and not heard.wait(PATIENCE_SECONDS):
            sys.stderr.write(CUT_OFF)
            sys.stderr.flush()
            os._exit(FAILED)

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writing)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # which ends the thread
        watcher.join()
        os.close(reading)
