"""Folders of jobs and multiruns as tracking finds them, and what a database holds."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from slimrun.runner.folder import read_json, write_json
from slimrun.runner.tracking.mlflow import MLflow

Rows = list[tuple[str, ...]]
RUNS = """select e.name, r.status, coalesce(p.value, '') from runs r join experiments e using (experiment_id)
left join tags p on p.run_uuid = r.run_uuid and p.key = 'mlflow.parentRunId' order by 1, 3"""


def read(file: Path, query: str) -> Rows:
    with closing(sqlite3.connect(file)) as database:
        return database.execute(query).fetchall()


def change(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        for statement in statements:
            database.execute(statement)


def job_in(folder: Path, **results: object) -> Path:
    """A job's folder as it is while the job runs, or with results once it has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    (folder / "layers.csv").write_text("name,bits\na,4\n", encoding="utf-8")
    if results:
        write_json(folder / "results.json", {"status": "ok", "overrides": ["seed=0"], "size/file_bytes": 1, **results})
    return folder


def sweep_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "sweep.json", {"name": "seed=0", "jobs": [], "parent_run_id": None, "uri": None})
    return folder


def ended(sweep: Path) -> None:
    write_json(sweep / "sweep.json", {**(read_json(sweep / "sweep.json") or {}), "summary": [{"job": 0}],
                                      "files": [], "tags": {}})  # fmt: skip


def run(tracker: MLflow, job: Path, sweep: Path | None = None, **results: object) -> None:
    with tracker.run(job_in(job), sweep, "name"):
        job_in(job, **{"status": "ok", **results})
    tracker.deliver(job, sweep)
