"""What a person sees: each stage and how far it is on stderr and in run.log, the final table on stdout."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread

import psutil
from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from slimrun.ops.calibration.base import Progress

WIDE = 200  # characters of a line
WIDEST = 10_000  # that a table may ask for
READABLE = 14  # characters of a column that is folded
QUIET_SECONDS = 60.0  # between two lines about one stage
log = logging.getLogger("slimrun")


def print_anything() -> None:
    """Make stdout and stderr escape what the terminal's encoding lacks: a name is no reason to end a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Stages:
    """Runs the stages of a job, keeps the seconds each took, and says how far each is.

    On a terminal that is a bar a stage. Where nobody looks it is a line when a stage begins, and one a minute while
    it goes on; run.log has these lines either way, and ends with the table of stages.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()
        console = Console(stderr=True)
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),  # a folder may be called [bold]
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Stages:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        total = sum(self.seconds.values())
        rows = [f"{stage:<12} {seconds:9.1f} s" for stage, seconds in {**self.seconds, "together": total}.items()]
        log.info("stages:\n%s", "\n".join(rows))

    @contextmanager
    def __call__(self, stage: str, detail: str = "") -> Iterator[Progress]:
        """One stage; its seconds add up under its name. Yields the callback that says how much of it is done."""
        name = f"{stage} {detail}".strip()
        bar = self._bars.add_task(name, total=None)
        so_far, start, ended = SoFar(name), time.perf_counter(), Event()
        self._say(name)

        def tick(done: int, total: int, part: str = "") -> None:
            so_far.told(done, total, part)
            self._bars.update(bar, completed=done, total=total, description=so_far.name)

        def keep_saying() -> None:
            while not ended.wait(QUIET_SECONDS):
                self._say(str(so_far))

        teller = Thread(target=keep_saying, name="progress", daemon=True)
        teller.start()
        try:
            yield tick
        finally:
            ended.set()
            teller.join()
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            if self._bars.tasks[bar].total is None:
                self._bars.update(bar, total=1, completed=1)

    def _say(self, text: str) -> None:
        """Say it, with the time since the start and the memory that is taken."""
        elapsed, memory = time.perf_counter() - self._begun, psutil.Process().memory_info().rss
        line = f"[{_duration(elapsed)}, {memory / 1e9:.1f} GB] {text}"
        log.info(line)
        if self._bars.disable:
            print(line, file=sys.stderr, flush=True)


class SoFar:
    """How far a stage is, as a line says it; how long what is left takes goes by the part that is under way."""

    def __init__(self, stage: str) -> None:
        self.stage = self.name = stage
        self._done = self._first = self._total = 0
        self._begun = time.perf_counter()

    def told(self, done: int, total: int, part: str = "") -> None:
        """So many of so many are done of the part that has this name."""
        name = f"{self.stage}, {part}" if part else self.stage
        if (name, total) != (self.name, self._total) or done < self._done:
            self.name, self._first, self._total, self._begun = name, done, total, time.perf_counter()
        self._done = done

    def __str__(self) -> str:
        if not self._total:
            return self.name
        line, made = f"{self.name}: {self._done} of {self._total}", self._done - self._first
        if made <= 0:
            return line
        return f"{line}, {_duration((time.perf_counter() - self._begun) * (self._total - self._done) / made)} left"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout; where folding the widest column does not make it narrow enough, a paragraph a row."""
    console = Console()
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = WIDE  # nobody's window: do not fold cells for it
    table = Table(title=Text(title, style="table.title") if title else None, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as text: [perplexity] is no markup
    whole = console.measure(table, options=console.options.update_width(WIDEST)).maximum
    widest = max(cell_len(cell) for row in (columns, *rows) for cell in row)
    if whole - max(0, widest - READABLE) <= console.width:
        console.print(table)
        return
    if title:
        console.print(Text(title, style="table.title"))
    for first, *others in rows:
        console.print(Text(f"{columns[0]} {first}".lstrip(), style="table.header"))
        told = [Text(f"{column} {cell}") for column, cell in zip(columns[1:], others) if cell]
        console.print(Padding(Columns(told, padding=(0, 2)), (0, 0, 0, 4)))
