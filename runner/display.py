"""What a person sees: a live line a stage on stderr, the final table on stdout."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

WIDE = 200  # columns
Tick = Callable[[int, int], None]  # (done, total)


def print_anything() -> None:
    """Make stdout and stderr escape what the terminal's encoding lacks: a name is no reason to end a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Stages:
    """Runs the stages of a job: shows each with its progress, and keeps the seconds each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),  # a folder may be called [bold]
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def __call__(self, stage: str, detail: str = "") -> Iterator[Tick]:
        """One stage; its seconds add up under its name. Yields the callback that moves its bar."""
        task = self._progress.add_task(f"{stage} {detail}".strip(), total=None)
        start = time.perf_counter()
        try:
            yield lambda done, total: self._progress.update(task, completed=done, total=total)
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            if self._progress.tasks[task].total is None:
                self._progress.update(task, total=1, completed=1)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout."""
    table = Table(title=Text(title, style="table.title") if title else None, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as text: [perplexity] is no markup
    console = Console()
    if not console.is_terminal:
        console.width = WIDE  # nobody's window: do not fold cells for it
    console.print(table)
