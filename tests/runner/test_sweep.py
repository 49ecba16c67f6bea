"""Multiruns on the random model: failures, resuming, parallel jobs, what they leave in MLflow."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from slimrun.runner.overrides import command_of
from tests.runner.console import FAST, results, slimrun, start

pytestmark = pytest.mark.usefixtures("quick_migrations")
VARYING = ("time/", "memory/", "repro")  # repro names the folder
THREE = ["-m", *FAST, "quant.fraction=0.02,0.03,0.05"]


def jobs_in(folder: Path) -> dict[int, dict[str, Any]]:
    """results.json of every job by number, without what varies from run to run."""
    kept = [{key: value for key, value in job.items() if not key.startswith(VARYING)} for job in results(folder)]
    return {int(str(job["job"])): job for job in kept}


def sweep_json(folder: Path) -> dict[str, Any]:
    [file] = folder.rglob("sweep.json")
    return dict(json.loads(file.read_text()))


def table(out: str) -> list[list[str]]:
    """Cells of the table, of folded ones the first line."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    return [row for row in rows if row[0]]


def runs_in(database: Path) -> dict[str, tuple[str, str | None]]:
    """Status and parent of every run, by its id."""
    with sqlite3.connect(database) as connection:
        parents = dict(connection.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
        rows = connection.execute("select run_uuid, status from runs").fetchall()
    return {run: (status, parents.get(run)) for run, status in rows}


def test_jobs_that_fail_are_recorded_and_the_others_finish(tmp_path: Path) -> None:
    status, out, err = slimrun(
        tmp_path, "-m", *FAST, "quant.fraction=0.02,0.5", "model.architecture.vocab_size=259,10,100000000000000"
    )
    assert status == 1, err
    jobs = jobs_in(tmp_path)
    assert [jobs[number]["status"] for number in range(6)] == ["ok", *["failed"] * 5]
    assert jobs[1]["error"].startswith("model=tiny_llama: the tokenizer has 259 tokens, the model embeddings for 10")
    assert jobs[2]["error"].startswith("out of memory (")
    assert jobs[3]["error"] == "quant.fraction=0.5 is out of range; allowed: 0.01 to 0.1"
    assert jobs[2]["overrides"][-1] == "model.architecture.vocab_size=100000000000000"
    for number in range(1, 4):
        [log] = [path for path in tmp_path.rglob("run.log") if path.parent.name == str(number)]
        assert "Traceback" in log.read_text()

    rows = table(out)
    assert [row[0] for row in rows] == list("012345")
    assert [row[1].split()[0] for row in rows] == ["quant.fraction=0.02"] * 3 + ["quant.fraction=0.5"] * 3
    assert [row[-2].split(":")[0] for row in rows] == ["ok", *["failed"] * 5]
    assert out.splitlines()[-1].startswith("look next: mlflow ui")
    record = sweep_json(tmp_path)
    assert [job["status"] for job in record["jobs"]] == ["ok", *["failed"] * 5]
    assert [job["folder"] for job in record["jobs"]] == list("012345")

    runs = runs_in(tmp_path / "mlflow.db")
    parent = record["parent_run_id"]
    assert sorted(status for status, owner in runs.values() if owner == parent) == ["FAILED"] * 5 + ["FINISHED"]
    assert runs[parent] == ("FAILED", None)
    failed = json.loads(next(path for path in tmp_path.rglob("tracking.json") if path.parent.name == "2").read_text())
    artifacts = tmp_path / "mlartifacts" / failed["run_id"] / "artifacts"
    assert "Traceback" in (artifacts / "run.log").read_text()


def test_a_sweep_in_a_config_file_whose_numbers_are_none_stops_what_has_not_begun(tmp_path: Path) -> None:
    preset = tmp_path / "mine" / "experiment" / "broken.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      +model.architecture.rms_norm_eps: -1.0,1e-5\n"
    )
    status, out, err = slimrun(
        tmp_path, *FAST, "--config-dir=mine", "experiment=broken", "tracking=none", "sweep.on_error=stop"
    )
    assert status == 1, err
    assert [row[-2].split(":")[0] for row in table(out)] == ["failed", "failed"]
    assert [job["status"] for job in sweep_json(tmp_path)["jobs"]] == ["failed", "failed"]
    jobs = jobs_in(tmp_path)
    assert jobs[0]["error"].startswith("ArithmeticError: the float model's logits are not finite numbers")
    assert jobs[1]["error"] == "not started: another job failed, and sweep.on_error=stop"


def test_a_job_that_fails_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "sweep" / "0" / "layers.csv").mkdir(parents=True)  # found when the report is written
    retry = ["sweep.retries=1", "hydra.sweep.dir=sweep", "tracking=none"]
    assert slimrun(tmp_path, "-m", *FAST, "quant.fraction=0.02", *retry)[0] == 1
    log = (tmp_path / "sweep" / "0" / "run.log").read_text()
    assert "attempts left: 1" in log
    assert log.count("Traceback") == 2


def test_a_killed_sweep_goes_on_where_it_was(made: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    killed.mkdir()
    shutil.copy(made, killed / "mlflow.db")
    assert slimrun(undisturbed, *THREE)[0] == 0
    process = start(killed, *THREE)
    # job 0 has ended, with all that it notes; below it scratch folders come and go
    while not list(killed.glob("multirun/*/*/1/run.log")) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    before = {file: file.stat().st_mtime_ns for file in killed.rglob("*/results.json")}
    assert before
    status, out, err = slimrun(killed, *THREE)
    assert status == 0, err
    assert jobs_in(killed) == jobs_in(undisturbed)
    assert all(file.stat().st_mtime_ns == written for file, written in before.items())
    runs, parent = runs_in(killed / "mlflow.db"), sweep_json(killed)["parent_run_id"]
    assert sorted(status for status, owner in runs.values() if owner == parent) == ["FINISHED"] * 3
    assert len(runs) == 4
    assert not list((killed / "cache" / "outbox").glob("*.json"))

    status, again, err = slimrun(killed, *THREE, "sweep.retries=2")  # how failures are treated is no other sweep
    assert status == 0
    assert table(again) == table(out)
    assert "all 3 jobs are done already" in err

    extended = ["-m", *FAST, "quant.fraction=0.05,0.06", "hydra.sweep.dir=extended", "tracking=none"]
    status, _, err = slimrun(killed, *extended)
    assert status == 0, err
    jobs = jobs_in(killed / "extended")
    assert jobs[0]["done_in"].endswith("/2")
    assert "done_in" not in jobs[1]
    assert jobs[0]["perplexity/quant"] == jobs_in(undisturbed)[2]["perplexity/quant"]


def test_a_folder_of_another_sweep_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    content = json.dumps({"command": ["quant=w8a8"], "jobs": []})
    (tmp_path / "sweep" / "sweep.json").write_text(content)
    status, _, err = slimrun(tmp_path, *THREE, "tracking=none", "hydra.sweep.dir=sweep")
    assert status == 2
    assert "holds another sweep (slimrun -m quant=w8a8); choose another folder" in err
    assert err.count("\n") == 1
    assert (tmp_path / "sweep" / "sweep.json").read_text() == content


def test_a_command_is_the_same_wherever_it_runs() -> None:
    first = ["quant.fraction=0.02,0.03", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    second = ["quant.fraction=0.02,0.03", "sweep.on_error=stop", "tracking.uri=http://host"]
    assert command_of(first) == command_of(second)
    assert command_of(first) != command_of(["quant.fraction=0.02"])
    assert command_of(["hydra.sweeper.n_trials=3"]) == ["hydra.sweeper.n_trials=3"]


def test_parallel_jobs_on_a_fresh_database_are_children_of_one_parent(tmp_path: Path) -> None:
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = start(tmp_path, "-m", *FAST, "quant.fraction=0.02,0.03", *parallel)  # its workers end with it
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    runs, parent = runs_in(tmp_path / "mlflow.db"), sweep_json(tmp_path)["parent_run_id"]
    assert sorted(runs.values(), key=str) == sorted([("FINISHED", None), *[("FINISHED", parent)] * 2], key=str)


def test_what_the_server_did_not_take_is_delivered_later(tmp_path: Path) -> None:
    store = tmp_path / "later" / "runs.db"
    store.parent.write_text("no folder yet")
    arguments = [*THREE[:-1], "quant.fraction=0.02,0.03", f"tracking.uri=sqlite:///{store}"]
    status, _, err = slimrun(tmp_path, *arguments)
    assert status == 0, err
    assert "does not take the run" in err
    assert [job["status"] for job in jobs_in(tmp_path).values()] == ["ok", "ok"]
    assert len(list((tmp_path / "cache" / "outbox").glob("*.json"))) == 3
    sync = [f"tracking.uri=sqlite:///{store}", "tracking.sync=true"]
    assert slimrun(tmp_path, *sync)[0] == 1
    store.parent.unlink()
    store.parent.mkdir()
    status, _, err = slimrun(tmp_path, *sync)
    assert status == 0, err
    assert "3 runs that waited are logged now" in err
    parent = sweep_json(tmp_path)["parent_run_id"]
    assert sorted(runs_in(store).values(), key=str) == sorted(
        [("FINISHED", None), *[("FINISHED", parent)] * 2], key=str
    )
    assert not (tmp_path / "mlflow.db").exists()


def test_a_signal_ends_a_sweep_and_says_how_to_go_on(tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("a text that takes minutes to score " * 6_000)
    minutes = [f"task.perplexity.path={text}", "task.perplexity.windows=9999", "task.perplexity.window=512",
               "model.architecture.hidden_size=512", "model.architecture.intermediate_size=4096"]  # fmt: skip
    process = start(tmp_path, *THREE, *minutes, "tracking=none", "hydra.sweep.dir=sweep")
    while not (tmp_path / "sweep" / "0" / "run.log").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)  # like Ctrl-C
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert [row[-2].split(":")[0] for row in table(out)] == ["failed", "left", "left"]
    assert "0 of 3 jobs are done; the same command runs the others again" in out
