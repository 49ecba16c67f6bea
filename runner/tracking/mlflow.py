"""Where runs are tracked. What a server that is down does not take waits in a folder; the job goes on.

A run is opened when its job starts, and filled from the files in the job's folder once it has ended. So it can be
filled at any later time: by the next start with the same `tracking.uri`, or by `slimrun tracking.sync=true`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from slimrun.runner.folder import RESULTS, RUN, SWEEP, note_run, read_json, run_in, write_json
from slimrun.runner.tracking.attempt import AWAY, attempted
from slimrun.runner.tracking.deadline import ANSWER_SECONDS, within
from slimrun.runner.tracking.outbox import Waiting, waiting
from slimrun.runner.tracking.uri import check, in_force, masked, ui_command

LOCK, ALIVE = ".tracking.lock", ".running.lock"  # in the folder of a job: the second as long as it runs


@dataclass(frozen=True)
class MLflow:
    """Logs to an MLflow server or database; null takes MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, where set."""

    uri: str | None = None
    experiment: str | None = None
    log_weights: bool = False
    outbox: str = "~/.cache/slimrun/outbox"
    sync: bool = False

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        if self.experiment is not None and not self.experiment.strip():
            raise ValueError(f"experiment='{self.experiment}' is empty; give a name, or null for the default")

    @property
    def tracking_uri(self) -> str:
        """The URI in force, absolute, with its password."""
        return in_force(self.uri)

    @property
    def address(self) -> str:
        """That URI as it is shown and written down; stores are told apart by it."""
        return masked(self.tracking_uri)

    @property
    def experiment_name(self) -> str:
        """The experiment in force."""
        return self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or "slimrun"

    @property
    def target(self) -> str:
        """What a run belongs to: a store and an experiment in it."""
        return f"{self.address} {self.experiment_name}"

    def check(self) -> None:
        """ValueError on an address that no store can have."""
        check(self.uri)

    @contextmanager
    def run(self, job: Path, sweep: Path | None, name: str) -> Iterator[None]:
        """Open the job's run, with its params and the load of the machine; one that was open before goes on."""
        write_json(job / RUN, {**(read_json(job / RUN) or {}), "name": name})
        with ExitStack() as alive:
            with suppress(Timeout):
                alive.enter_context(FileLock(job / ALIVE, timeout=0))
            self._waiting(job, sweep).note(self._outbox)
            # whole, whatever interrupts it: a run that is made and not noted would stay RUNNING for ever
            monitor = attempted(self.tracking_uri, sweep, lambda: within(None, lambda: self._open(job, sweep, name)))
            try:
                yield
            finally:
                if monitor is not None:
                    attempted(self.tracking_uri, sweep, lambda: within(ANSWER_SECONDS, monitor.finish))

    def deliver(self, job: Path, sweep: Path | None) -> None:
        """Log params, metrics, tags, data, tables and pictures."""
        if self._delivered(job):
            self._waiting(job, sweep).done(self._outbox)
            return
        self._waiting(job, sweep).note(self._outbox)
        attempted(self.tracking_uri, sweep, lambda: self._fill(job, sweep))

    def begin_sweep(self, sweep: Path) -> None:
        """Open the parent run."""
        (sweep / AWAY).unlink(missing_ok=True)  # a new start asks anew
        attempted(self.tracking_uri, sweep, lambda: within(None, lambda: self._parent(sweep, reopen=True)))

    def deliver_sweep(self, sweep: Path) -> None:
        """Close the parent run with its summary, pictures and tags."""
        entry = self._waiting(sweep, None)
        entry.note(self._outbox)

        def fill() -> None:
            with FileLock(sweep / LOCK):
                self._store().fill_sweep(sweep, str(self._parent(sweep)))
                entry.done(self._outbox)

        attempted(self.tracking_uri, sweep, fill)

    def deliver_waiting(self) -> tuple[int, int]:
        """Log everything in the outbox that has ended and belongs to this store, each into its own experiment."""
        delivered = still = 0
        for entry in waiting(self._outbox, self.address):
            tracker = replace(self, experiment=entry.experiment, log_weights=entry.log_weights)
            folder, file = Path(entry.folder), entry.file(self._outbox)
            if (folder / RESULTS).is_file():
                tracker.deliver(folder, Path(entry.sweep) if entry.sweep else None)
            elif (read_json(folder / SWEEP) or {}).get("summary"):
                tracker.deliver_sweep(folder)
            else:
                tracker._end_killed(folder, entry)
                continue
            delivered, still = delivered + (not file.exists()), still + file.exists()
        return delivered, still

    def look_next(self) -> str:
        """The command that opens the UI."""
        return ui_command(self.address)

    @property
    def _outbox(self) -> Path:
        return Path(self.outbox).expanduser()

    def _waiting(self, folder: Path, sweep: Path | None) -> Waiting:
        """The outbox's entry for this folder, there until all of it is logged."""
        where = str(sweep) if sweep else None
        return Waiting(str(folder.absolute()), where, self.address, self.experiment_name, self.log_weights)

    def _store(self) -> Any:
        from slimrun.runner.tracking.store import Store  # takes 2 s to import

        return Store.at(self.tracking_uri, self.experiment_name)

    def _open(self, job: Path, sweep: Path | None, name: str) -> Any:
        """The job's run is RUNNING; the monitor of the machine."""
        with FileLock(job / LOCK):
            store = self._store()
            return store.watch_machine(store.open_job(job, self._parent(sweep), name))

    def _fill(self, job: Path, sweep: Path | None) -> None:
        with FileLock(job / LOCK):
            if not self._delivered(job):
                self._store().fill_job(job, self._parent(sweep), self.log_weights)
            self._waiting(job, sweep).done(self._outbox)

    def _delivered(self, job: Path) -> bool:
        return bool(run_in(job / RUN, self.target).get("delivered") == (job / RESULTS).stat().st_mtime_ns)

    def _end_killed(self, job: Path, entry: Waiting) -> None:
        """Close the run of a job that left no results and does not run any more: it was killed, or is gone."""
        if not job.is_dir():
            entry.done(self._outbox)
            return
        with suppress(Timeout), FileLock(job / ALIVE, timeout=0):
            run_id = run_in(job / RUN, self.target).get("run_id")
            if not run_id or attempted(self.tracking_uri, None, lambda: self._store().end_killed(run_id)):
                entry.done(self._outbox)

    def _parent(self, sweep: Path | None, reopen: bool = False) -> str | None:
        """Id of the sweep's parent run, which is made now if its experiment has none yet."""
        if sweep is None:
            return None
        with FileLock(sweep / ".parent.lock"):
            known = run_in(sweep / SWEEP, self.target).get("run_id")
            if reopen or not known:
                known = self._store().open_sweep(str((read_json(sweep / SWEEP) or {})["name"]), known)
                note_run(sweep / SWEEP, self.target, {"run_id": known}, parent_run_id=known, uri=self.address)
            return str(known)
