"""What is written to MLflow, from the files of a job and of a multirun. Any call raises when the store is away."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context.registry import resolve_tags
from omegaconf import DictConfig, OmegaConf
from sqlalchemy import create_engine

from slimrun.runner.folder import (
    RESULTS,
    RUN,
    SAMPLES,
    SCORES,
    SWEEP,
    UPLOADED,
    flat,
    note_run,
    read_json,
    read_scores,
    run_in,
)
from slimrun.runner.tracking.database import ensure
from slimrun.runner.tracking.deadline import ANSWER_SECONDS, within
from slimrun.runner.tracking.logged_model import linked, logged
from slimrun.runner.tracking.uri import database_file, masked

PARENT_TAG = "mlflow.parentRunId"
TABLES_TAG = "mlflow.loggedArtifacts"  # makes the UI show a JSON artifact as a table
MAX_PARAM, MAX_TAG, MAX_BATCH, MAX_DIGEST = 6000, 5000, 100, 36  # what MLflow stores; longer text is cut
NOT_LOGGED = ("status", "overrides", "job")  # keys of results.json that are neither metrics nor tags
SIGNED = ("config_hash", "verdict", "weights.path", "weights.bytes", "weights.sha256")  # tags that its model has too
NOT_IN_NAMES = re.compile(r"[/:.%\"']+")  # of a logged model
SAMPLING_SECONDS = 5
TIMEOUT, UPLOAD_SECONDS = "MLFLOW_HTTP_REQUEST_TIMEOUT", 600


class Store:
    """An MLflow server or database, and one experiment in it."""

    def __init__(self, uri: str, experiment: str) -> None:
        """Connect; TimeoutError when a server does not answer, ValueError when a file is no database to write to."""
        self.address = masked(uri)
        self.target = f"{self.address} {experiment}"
        self.uri, self.file = _without_password(uri), database_file(uri)
        if self.file:
            ensure(self.file)
        else:
            within(ANSWER_SECONDS, lambda: _knock(self.uri))
        self.client = MlflowClient(self.uri)
        self.experiment = self._experiment(experiment)

    @staticmethod
    @cache
    def at(uri: str, experiment: str) -> Store:
        """The store of this process."""
        return Store(uri, experiment)

    def open_job(self, job: Path, parent: str | None, name: str, started: int | None = None) -> str:
        """A RUNNING run with the params of config.yaml; an attempt that ended early goes on in its own run.

        `started` is in milliseconds, null: now.
        """
        params = flat(DictConfig(OmegaConf.load(job / "config.yaml"))) if (job / "config.yaml").is_file() else {}
        identity = hashlib.sha256(json.dumps([params, parent], sort_keys=True, default=str).encode()).hexdigest()
        before = run_in(job / RUN, self.target)
        if before.get("params") == identity and self._reopen(before["run_id"]):
            run_id = str(before["run_id"])
            self._untag(run_id, "error")
        else:
            # user and git commit, as mlflow's own runs have
            tags = resolve_tags({"mlflow.runName": name, "mlflow.source.name": "slimrun"})
            if parent:
                tags[PARENT_TAG] = parent
            run_id = str(self.client.create_run(self.experiment, started, tags).info.run_id)
        # noted before anything else is logged: whatever interrupts that, the run is found again and closed
        known = {"run_id": run_id, "params": identity, "delivered": None}
        note_run(job / RUN, self.target, known, name=name, uri=self.address, run_id=run_id)
        items = [Param(key, str(value)[:MAX_PARAM]) for key, value in params.items()]
        for start in range(0, len(items), MAX_BATCH):
            self.client.log_batch(run_id, params=items[start : start + MAX_BATCH])
        return run_id

    def fill_job(self, job: Path, parent: str | None, log_weights: bool) -> None:
        """Everything of a job that has ended, from its files; the weights by reference."""
        results = read_json(job / RESULTS) or {}
        ended = int((job / RESULTS).stat().st_mtime * 1000)  # the same whenever it is logged, so twice is once
        run_id = run_in(job / RUN, self.target).get("run_id")
        if not run_id:
            seconds = sum(value for key, value in results.items() if key.startswith("time/"))
            name = str((read_json(job / RUN) or {}).get("name", " ".join(results["overrides"])))
            run_id = self.open_job(job, parent, name, ended - int(1000 * seconds))
        numbers = {key: value for key, value in results.items() if isinstance(value, int | float)}
        texts = {key: value for key, value in results.items() if isinstance(value, str)}
        data = {key.removeprefix("data/"): value for key, value in texts.items() if key.startswith("data/")}
        scores = read_scores(job / SCORES) or []
        verdicts = [f"{score.label}: {score.verdict}" for score in scores if score.verdict]
        tags = {**texts, "verdict": "; ".join(verdicts), **_weights(job, results)}
        if data:
            self.client.log_inputs(run_id, [_dataset(name, sha256) for name, sha256 in data.items()])
        failed = results["status"] != "ok"
        model_id = None if failed else self._model(job, run_id, {key: tags[key] for key in tags if key in SIGNED})
        digests = {name: sha256[:MAX_DIGEST] for name, sha256 in data.items()}
        metrics = [Metric(key, value, ended, 0) for key, value in numbers.items() if key not in NOT_LOGGED]
        self.client.log_batch(
            run_id,
            metrics=[linked(metric, model_id, digests) for metric in metrics],
            tags=[RunTag(key, value[:MAX_TAG]) for key, value in tags.items() if value and key not in NOT_LOGGED],
        )
        names = ("config.yaml", "run.log", RESULTS) if failed else (*UPLOADED, RESULTS)
        for name in names:
            if (job / name).is_file():
                self.client.log_artifact(run_id, str(job / name))
        if not failed:
            samples = (read_json(job / SAMPLES) or {}).items()
            items = {f"samples/{task}.json": rows for task, rows in samples if rows}
            self._log_tables(run_id, {"layers.json": _read_csv(job / "layers.csv"), **items})
        if log_weights and "weights.path" in tags:
            with _patience():
                self.client.log_artifact(run_id, tags["weights.path"], "artifact")
        interrupted = failed and results["error"].startswith("interrupted")
        status = "KILLED" if interrupted else "FAILED" if failed else "FINISHED"
        self.client.set_terminated(run_id, status, ended)
        note_run(job / RUN, self.target, {"delivered": (job / RESULTS).stat().st_mtime_ns})

    def _model(self, job: Path, run_id: str, tags: dict[str, str]) -> str | None:
        """Id of the logged model of a job's bundle, made if the run has none yet; None of a server before MLflow 3."""
        known = run_in(job / RUN, self.target).get("model_id")
        if not known:
            name = self.client.get_run(run_id).info.run_name or "slimrun"
            known = logged(self.client, self.experiment, run_id, NOT_IN_NAMES.sub("-", name), tags)
            note_run(job / RUN, self.target, {"model_id": known})
        return known

    def open_sweep(self, name: str, known: str | None) -> str:
        """A RUNNING parent run: the one known from before if it is still there."""
        if known and self._reopen(known):
            return known
        run = self.client.create_run(self.experiment, run_name=name[:MAX_TAG], tags={"slimrun": "multirun"})
        return str(run.info.run_id)

    def fill_sweep(self, sweep: Path, run_id: str) -> None:
        """Summary table, pictures and tags of a multirun, from its folder."""
        record = read_json(sweep / SWEEP) or {}
        self._log_tables(run_id, {"summary.json": record["summary"]})
        for name in record["files"]:
            self.client.log_artifact(run_id, str(sweep / name))
        for key, value in record["tags"].items():
            self.client.set_tag(run_id, key, value[:MAX_TAG])
        failed = any(job["status"] != "ok" for job in record["jobs"])
        self.client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    def end_killed(self, run_id: str) -> bool:
        """Close a run whose process was killed; true, also when the run was deleted or closed meanwhile."""
        try:
            if self.client.get_run(run_id).info.status == "RUNNING":
                self.client.set_terminated(run_id, "KILLED")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        return True

    def watch_machine(self, run_id: str) -> Any:
        """A thread that logs the load of the machine until its `finish` is called."""
        monitor = SystemMetricsMonitor(run_id, sampling_interval=SAMPLING_SECONDS, tracking_uri=self.uri)
        monitor.start()
        return monitor

    def _experiment(self, name: str) -> str:
        """Id of the experiment, made if it is not there; artifacts of a sqlite file lie beside it."""
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        artifacts = None
        if self.file:
            artifacts = (self.file.parent / "mlartifacts").resolve().as_uri()
        try:
            return str(self.client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # another job made it in between
            return str(self.client.get_experiment_by_name(name).experiment_id)

    def _reopen(self, run_id: str) -> bool:
        """Set a run that ended to RUNNING; False when it was deleted."""
        try:
            self.client.update_run(run_id, status="RUNNING")
        except MlflowException:
            return False
        return True

    def _untag(self, run_id: str, key: str) -> None:
        if key in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, key)

    def _log_tables(self, run_id: str, tables: Mapping[str, list[dict[str, Any]]]) -> None:
        """What `log_table` writes, but in the place of earlier ones: `log_table` appends to them."""
        for name, rows in tables.items():
            columns = list(rows[0]) if rows else []
            self.client.log_dict(run_id, {"columns": columns, "data": [list(row.values()) for row in rows]}, name)
        self.client.set_tag(run_id, TABLES_TAG, json.dumps([{"path": name, "type": "table"} for name in tables]))


def _without_password(uri: str) -> str:
    """The address as MLflow may repeat it in messages: it takes user and password of a server from the environment."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.password:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _knock(uri: str) -> None:
    """Ask a server for anything, once: MLflow itself tries a database that is away for minutes."""
    if uri.startswith(("postgresql", "mysql", "mssql")):
        create_engine(uri).connect().close()
    else:
        MlflowClient(uri).search_experiments(max_results=1)


@contextmanager
def _patience() -> Iterator[None]:
    """A server answers after it has stored what it got, which takes longer for gigabytes."""
    usual = os.environ.get(TIMEOUT, "")
    os.environ[TIMEOUT] = str(UPLOAD_SECONDS)
    try:
        yield
    finally:
        os.environ[TIMEOUT] = usual


def _weights(job: Path, results: dict[str, Any]) -> dict[str, str]:
    """Path, size and sha256 of the weight file; nothing when the job left none."""
    files = sorted(Path(results.get("done_in", job), "artifact").glob("quant_model_weight_*"))
    if results["status"] != "ok" or not files:
        return {}
    with files[0].open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "weights.path": str(files[0].resolve()),
        "weights.bytes": str(files[0].stat().st_size),
        "weights.sha256": sha256,
    }


def _dataset(name: str, sha256: str) -> DatasetInput:
    context = "calibration" if name == "calibration" else "evaluation"
    dataset = Dataset(name, sha256[:MAX_DIGEST], "local", json.dumps({"sha256": sha256}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _read_csv(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
