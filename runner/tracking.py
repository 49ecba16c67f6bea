"""Where runs are tracked. What a server that is down does not take waits in a folder; the job goes on.

A run is opened when its job starts, and filled from the files in the job's folder once it has ended. So it can be
filled at any later time: by the next start with the same `tracking.uri`, or by `slimrun tracking.sync=true`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from runner.result import RESULTS, read_json, write_json

SWEEP = "sweep.json"  # in the folder of a multirun: its command, its parent run, its jobs
RUN = "tracking.json"  # in the folder of a job: its run
LOCK = ".tracking.lock"
MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # its own start-up messages, not errors
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default waits minutes for a server that is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
}
log = logging.getLogger("slimrun")


class Tracker(Protocol):
    """Where runs are logged. No method raises because a server does not answer."""

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


@dataclass(frozen=True)
class NoTracking:
    """Logs nothing."""

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


@dataclass(frozen=True)
class MLflow:
    """Logs to an MLflow server or database; `uri` null means mlflow.db in the current directory."""

    uri: str | None = None
    experiment: str = "slimrun"
    log_weights: bool = False
    outbox: str = "~/.cache/slimrun/outbox"
    sync: bool = False

    @property
    def tracking_uri(self) -> str:
        """The URI in force, absolute."""
        return self.uri or f"sqlite:///{Path.cwd() / 'mlflow.db'}"

    @contextmanager
    def run(self, job: Path, sweep: Path | None, name: str) -> Iterator[None]:
        """The job's run, with its params and the load of the machine; one that was open before goes on."""
        self._note_waiting(job, sweep)
        write_json(job / RUN, {**(read_json(job / RUN) or {}), "name": name})
        monitor: Any = None
        with self._surviving(), FileLock(job / LOCK):
            store = self._store()
            monitor = store.watch_machine(store.open_job(job, self._parent(sweep), name))
        try:
            yield
        finally:
            if monitor is not None:
                with suppress(Exception):  # the server may be gone by now
                    monitor.finish()

    def deliver(self, job: Path, sweep: Path | None) -> None:
        """Params, metrics, tags, data, tables and pictures."""
        entry = self._note_waiting(job, sweep)
        with self._surviving(), FileLock(job / LOCK):
            run = read_json(job / RUN) or {}
            if run.get("uri") != self.tracking_uri or run["delivered"] != (job / RESULTS).stat().st_mtime_ns:
                self._store().fill_job(job, self._parent(sweep), self.log_weights)
            entry.unlink(missing_ok=True)

    def begin_sweep(self, sweep: Path) -> None:
        """The parent run."""
        with self._surviving():
            self._parent(sweep, reopen=True)

    def deliver_sweep(self, sweep: Path) -> None:
        """Close the parent run with its summary, pictures and tags."""
        entry = self._note_waiting(sweep, None)
        with self._surviving(), FileLock(sweep / LOCK):
            parent = self._parent(sweep)
            assert parent is not None
            self._store().fill_sweep(sweep, parent)
            entry.unlink(missing_ok=True)

    def deliver_waiting(self) -> tuple[int, int]:
        """Everything in the outbox that has ended and belongs to this server."""
        delivered = waiting = 0
        for entry in sorted(Path(self.outbox).expanduser().glob("*.json")):
            content = read_json(entry) or {"folder": "", "uri": ""}
            folder = Path(content["folder"])
            if content["uri"] != self.tracking_uri or waiting:
                waiting += content["uri"] == self.tracking_uri  # one failure is enough to know
            elif (folder / RESULTS).is_file():
                self.deliver(folder, Path(content["sweep"]) if content["sweep"] else None)
                delivered, waiting = delivered + (not entry.exists()), waiting + entry.exists()
            elif (read_json(folder / SWEEP) or {}).get("summary"):
                self.deliver_sweep(folder)
                delivered, waiting = delivered + (not entry.exists()), waiting + entry.exists()
            elif not folder.is_dir():
                entry.unlink(missing_ok=True)  # what is left runs still, or was killed and has nothing to log
        return delivered, waiting

    def look_next(self) -> str:
        """The command that opens the UI."""
        if self.tracking_uri.startswith("http"):
            return f"open {self.tracking_uri}"
        return f"mlflow ui --backend-store-uri {self.tracking_uri}"

    def _store(self) -> Any:
        for name, value in MLFLOW_SETTINGS.items():
            os.environ.setdefault(name, value)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from runner.mlflow_store import Store  # takes 2 s to import

        return Store.at(self.tracking_uri, self.experiment)

    def _parent(self, sweep: Path | None, reopen: bool = False) -> str | None:
        """Id of the sweep's parent run, which is made now if there is none on this server yet."""
        if sweep is None:
            return None
        with FileLock(sweep / ".parent.lock"):
            record = read_json(sweep / SWEEP) or {}
            known = record["parent_run_id"] if record["uri"] == self.tracking_uri else None
            if reopen or not known:
                record["parent_run_id"] = self._store().open_sweep(str(record["name"]), known)
                record["uri"] = self.tracking_uri
                write_json(sweep / SWEEP, record)
            return str(record["parent_run_id"])

    def _note_waiting(self, folder: Path, sweep: Path | None) -> Path:
        """The outbox's entry for this folder, there until all of it is logged."""
        outbox = Path(self.outbox).expanduser()
        outbox.mkdir(parents=True, exist_ok=True)
        entry = outbox / f"{sha256(str(folder.absolute()).encode()).hexdigest()[:32]}.json"
        content = {"folder": str(folder.absolute()), "sweep": sweep and str(sweep), "uri": self.tracking_uri}
        write_json(entry, content)
        return entry

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Whatever the tracking store answers must not cost a finished run."""
        try:
            yield
        except Exception as error:
            log.exception("tracking failed")
            reason = str(error).strip().split("\n")[0][:100]
            print(
                f"note: tracking.uri={self.tracking_uri} does not take the run ({reason}); the results are kept, and "
                "the next start with this uri delivers them, or slimrun tracking.sync=true",
                file=sys.stderr,
            )
