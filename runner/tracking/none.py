"""No tracking: results.json and the report are written all the same."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NoTracking:
    """Logs nothing."""

    def check(self) -> None:
        """Nothing can be wrong."""

    def run(self, job: Path, sweep: Path | None, name: str) -> AbstractContextManager[None]:
        """Nothing is opened."""
        return nullcontext()

    def deliver(self, job: Path, sweep: Path | None) -> None:
        """Nothing is logged."""

    def begin_sweep(self, sweep: Path) -> None:
        """No parent."""

    def deliver_sweep(self, sweep: Path) -> None:
        """Nothing to close."""

    def deliver_waiting(self) -> tuple[int, int]:
        """Nothing waits."""
        return 0, 0

    def look_next(self) -> str:
        """Nothing to see."""
        return ""
