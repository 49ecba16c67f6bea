"""What the run asks of a tracker."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Where runs are logged. No method raises because a server does not answer."""

    def check(self) -> None:
        """ValueError on what can be seen to be wrong before a run; the message names the key."""

    def run(self, job: Path, sweep: Path | None, name: str) -> AbstractContextManager[None]:
        """The job's run is open inside the block."""

    def deliver(self, job: Path, sweep: Path | None) -> None:
        """Log a job that has ended, well or not, from its folder; nothing if that is done already."""

    def begin_sweep(self, sweep: Path) -> None:
        """Open the parent run of the multirun that sweep.json describes, or the one it had, and note its id there."""

    def deliver_sweep(self, sweep: Path) -> None:
        """Log a multirun that has ended, from its folder, and close its parent run."""

    def deliver_waiting(self) -> tuple[int, int]:
        """Log what could not be logged before: (how many were, how many still wait)."""

    def look_next(self) -> str:
        """What a person types to see the runs, "" if there is nothing to see."""
