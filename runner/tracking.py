"""Runs in MLflow: one run a job, under the parent of its multirun if there is one."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from runner.result import Result

PARENT_TAG = "mlflow.parentRunId"
MAX_PARAM, MAX_TAG, MAX_BATCH = 6000, 5000, 100  # what MLflow stores; longer text is cut
UPLOADED = ("config.yaml", "report.md", "layers.csv", "layers.png", "scores.png", "outputs.npz", "results.json")


class Log(Protocol):
    """An open run."""

    def finish(self, result: Result, output: Path, command: str) -> None:
        """Log a finished job: metrics, tags, the command that reproduces it, and the files of its output folder."""


class Tracker(Protocol):
    """Where runs are logged."""

    def run(self, name: str, params: Mapping[str, Any], parent: str | None) -> AbstractContextManager[Log]:
        """A run that is open inside the block and marked failed when the block raises."""

    def start_parent(self, name: str) -> str | None:
        """Open the parent run of a multirun and return its id."""

    def end_parent(self, run_id: str, failed: bool, summary: list[dict[str, Any]]) -> None:
        """Close the parent run, with the summary of its jobs."""

    def look_next(self) -> str:
        """What a person types to see the runs, "" if there is nothing to see."""


@dataclass(frozen=True)
class NoTracking:
    """Logs nothing."""

    @contextmanager
    def run(self, name: str, params: Mapping[str, Any], parent: str | None) -> Iterator[Log]:
        """An open run that forgets."""
        yield _Forget()

    def start_parent(self, name: str) -> str | None:
        """No parent."""
        return None

    def end_parent(self, run_id: str, failed: bool, summary: list[dict[str, Any]]) -> None:
        """Nothing to close."""

    def look_next(self) -> str:
        """Nothing to see."""
        return ""


@dataclass(frozen=True)
class MLflow:
    """Logs to an MLflow server or database; `uri` null means mlflow.db in the current directory."""

    uri: str | None = None
    experiment: str = "slimrun"
    log_weights: bool = False

    @property
    def tracking_uri(self) -> str:
        """The URI in force, absolute."""
        return self.uri or f"sqlite:///{Path.cwd() / 'mlflow.db'}"

    @contextmanager
    def run(self, name: str, params: Mapping[str, Any], parent: str | None) -> Iterator[Log]:
        """An open MLflow run, FAILED when the block raises."""
        client = self._client()
        from mlflow.tracking.context.registry import resolve_tags  # user, git commit, as mlflow's own runs have

        tags = resolve_tags({"mlflow.runName": name, "mlflow.source.name": "slimrun"})
        tags |= {PARENT_TAG: parent} if parent else {}
        run_id = client.create_run(self._experiment(client), tags=tags).info.run_id
        self._log_params(client, run_id, params)
        try:
            yield _Open(self, client, run_id)
        except BaseException as error:
            client.set_tag(run_id, "error", _line(error)[:MAX_TAG])
            client.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        client.set_terminated(run_id, "FINISHED")

    def start_parent(self, name: str) -> str | None:
        """Open the parent run."""
        client = self._client()
        return str(client.create_run(self._experiment(client), run_name=name, tags={"slimrun": "multirun"}).info.run_id)

    def end_parent(self, run_id: str, failed: bool, summary: list[dict[str, Any]]) -> None:
        """Close the parent run with the table of its jobs."""
        client = self._client()
        columns = sorted({key for row in summary for key in row})
        if summary:
            client.log_table(run_id, {key: [row.get(key) for row in summary] for key in columns}, "summary.json")
        client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    def look_next(self) -> str:
        """The command that opens the UI."""
        if self.tracking_uri.startswith("http"):
            return f"open {self.tracking_uri}"
        return f"mlflow ui --backend-store-uri {self.tracking_uri}"

    def _client(self) -> Any:
        """A client whose database exists and is migrated: made once, under a lock, since parallel makers crash."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # its own start-up messages, not errors
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        uri = self.tracking_uri
        if not uri.startswith("sqlite:///"):
            return MlflowClient(uri)
        with FileLock(uri.removeprefix("sqlite:///") + ".lock"):
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
        return client

    def _experiment(self, client: Any) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(self.experiment, artifact_location=self._artifacts()))
        except MlflowException:  # another job made it in between
            return str(client.get_experiment_by_name(self.experiment).experiment_id)

    def _artifacts(self) -> str | None:
        """Artifacts of a sqlite file live beside it, wherever a later job or the UI is started from."""
        if not self.tracking_uri.startswith("sqlite:///"):
            return None
        return (Path(self.tracking_uri.removeprefix("sqlite:///")).parent / "mlartifacts").resolve().as_uri()

    @staticmethod
    def _log_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        items = [Param(key, str(value)[:MAX_PARAM]) for key, value in params.items()]
        for start in range(0, len(items), MAX_BATCH):
            client.log_batch(run_id, params=items[start : start + MAX_BATCH])


class _Forget:
    def finish(self, result: Result, output: Path, command: str) -> None:
        """Nothing is kept."""


class _Open:
    """An open MLflow run."""

    def __init__(self, tracker: MLflow, client: Any, run_id: str) -> None:
        self.tracker, self.client, self.run_id = tracker, client, run_id

    def finish(self, result: Result, output: Path, command: str) -> None:
        """Metrics and tags from the result, files from the output folder, the weights by reference."""
        import time

        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        numbers = {key: float(value) for key, value in result.metrics.items() if not isinstance(value, str)}
        texts = {key: value for key, value in result.metrics.items() if isinstance(value, str)}
        tags = {
            **texts,
            "config_hash": result.config_hash,
            "repro": command,
            "weights.path": str(result.weight_file.resolve()),
            "weights.bytes": str(result.weight_file.stat().st_size),
            "weights.sha256": _sha256(result.weight_file),
            "verdict": "; ".join(f"{key}: {text}" for key, text in texts.items() if key.endswith("/verdict")),
        }
        self.client.log_batch(
            self.run_id,
            metrics=[Metric(key, value, now, 0) for key, value in numbers.items()],
            tags=[RunTag(key, value[:MAX_TAG]) for key, value in tags.items() if value],
        )
        for name in UPLOADED:
            self.client.log_artifact(self.run_id, str(output / name))
        if self.tracker.log_weights:
            self.client.log_artifact(self.run_id, str(result.weight_file), "artifact")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]
