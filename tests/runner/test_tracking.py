"""What reaches a tracking store, when, and what a kill, or a hung server costs."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow import MlflowClient

from slimrun.runner.folder import RUN, run_in, write_json
from slimrun.runner.tracking import attempt
from slimrun.runner.tracking.attempt import AWAY
from slimrun.runner.tracking.mlflow import ALIVE, MLflow
from slimrun.runner.tracking.outbox import waiting
from tests.runner.tracked import RUNS, ended, job_in, read, run, sweep_in


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "away", set())
    monkeypatch.setattr(attempt, "said", set())


def test_what_waits_goes_where_it_was_made_for(tmp_path: Path, made: Path) -> None:
    place = tmp_path / "store"
    place.write_text("no folder yet", encoding="utf-8")
    uri, outbox = f"sqlite:///{place / 'runs.db'}", str(tmp_path / "outbox")
    first = MLflow(uri, "first", log_weights=True, outbox=outbox)
    run(first, tmp_path / "alone")
    sweep = sweep_in(tmp_path / "sweep")
    first.begin_sweep(sweep)
    run(first, sweep / "0", sweep)
    ended(sweep)
    first.deliver_sweep(sweep)
    second = MLflow(uri, "second", outbox=outbox)
    run(second, tmp_path / "another")
    second.deliver(sweep / "0", sweep)  # the same sweep goes on under another name
    weights = job_in(tmp_path / "alone") / "artifact" / "quant_model_weight_x.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")

    elsewhere = Path(shutil.copy(made, tmp_path / "elsewhere.db"))
    assert MLflow(f"sqlite:///{elsewhere}", "third", outbox=outbox).deliver_waiting() == (0, 0)
    assert second.deliver_waiting() == (0, 5)
    place.unlink()
    place.mkdir()
    shutil.copy(made, place / "runs.db")
    assert MLflow(uri, "third", outbox=outbox, sync=True).deliver_waiting() == (5, 0)
    assert second.deliver_waiting() == (0, 0)
    runs = read(place / "runs.db", RUNS)
    [first_parent, second_parent] = [json.loads((sweep / "sweep.json").read_text())["runs"][f"{uri} {name}"]["run_id"]
                                     for name in ("first", "second")]  # fmt: skip
    assert sorted(runs) == sorted([
        ("first", "FINISHED", ""), ("first", "FINISHED", first_parent), ("first", "FINISHED", ""),
        ("second", "FINISHED", ""), ("second", "FINISHED", second_parent), ("second", "RUNNING", ""),
    ])  # fmt: skip
    assert [path.parent.parent.name for path in place.rglob("quant_model_weight_*")] == ["artifacts"]


def test_a_job_done_twice_is_one_run(database: Path, tmp_path: Path) -> None:
    tracker = MLflow(f"sqlite:///{database}", outbox=str(tmp_path / "outbox"))
    run(tracker, tmp_path / "job")
    tracker.deliver(tmp_path / "job", None)
    MLflow(tracker.uri, "other", outbox=tracker.outbox).deliver(tmp_path / "job", None)
    tracker.deliver(tmp_path / "job", None)
    assert read(database, RUNS) == [("other", "FINISHED", ""), ("slimrun", "FINISHED", "")]
    assert not list((tmp_path / "outbox").iterdir())


def test_no_run_stays_running_after_its_job(database: Path, tmp_path: Path) -> None:
    tracker = MLflow(f"sqlite:///{database}", outbox=str(tmp_path / "outbox"))
    run(tracker, tmp_path / "interrupted", status="failed", error="interrupted; run it again")
    with suppress(KeyboardInterrupt), tracker.run(job_in(tmp_path / "killed"), None, "name"):
        raise KeyboardInterrupt  # and nothing after it, as when the process is killed
    with tracker.run(job_in(tmp_path / "running"), None, "name"):
        assert tracker.deliver_waiting() == (0, 0)
        assert sorted(read(database, RUNS)) == [("slimrun", state, "") for state in ("KILLED", "KILLED", "RUNNING")]
        assert FileLock(tmp_path / "killed" / ALIVE, timeout=0).acquire()
    run(tracker, tmp_path / "killed")  # the same job again goes on in its run
    assert sorted(read(database, RUNS))[0] == ("slimrun", "FINISHED", "")
    assert len(read(database, RUNS)) == 3


def test_a_run_that_is_opened_while_ctrl_c_comes_is_closed(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = MlflowClient.create_run

    def interrupted(client: MlflowClient, *arguments: object) -> object:
        made = create(client, *arguments)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return made

    monkeypatch.setattr(MlflowClient, "create_run", interrupted)
    tracker = MLflow(f"sqlite:///{database}", outbox=str(tmp_path / "outbox"))
    job = job_in(tmp_path / "job")
    with pytest.raises(KeyboardInterrupt), tracker.run(job, None, "name"):
        pass
    tracker.deliver(job_in(job, status="failed", error="interrupted; run it again"), None)
    assert read(database, RUNS) == [("slimrun", "KILLED", "")]


def test_what_an_older_version_left_waiting_is_delivered_and_its_password_gone(tmp_path: Path) -> None:
    write_json(tmp_path / "old.json", {"folder": "/job", "sweep": None, "uri": "http://bob:s3cr3tpw@host"})
    [entry] = waiting(tmp_path, "http://bob:***@host")
    assert (entry.folder, entry.experiment) == ("/job", "slimrun")
    [file] = tmp_path.iterdir()
    assert file == entry.file(tmp_path)
    assert "s3cr3tpw" not in file.read_text(encoding="utf-8")


def test_an_outbox_that_cannot_be_written_costs_no_run(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outbox").write_text("in the way", encoding="utf-8")
    run(MLflow(f"sqlite:///{database}", outbox=str(tmp_path / "outbox")), tmp_path / "job")
    assert read(database, RUNS) == [("slimrun", "FINISHED", "")]
    assert "outbox cannot be written" in capsys.readouterr().err


# --- a server that does not answer


@pytest.fixture
def hung() -> Iterator[tuple[str, list[socket.socket]]]:
    """Address of a server that takes connections and never answers, and the connections."""
    listener, taken = socket.socket(), []
    listener.bind(("127.0.0.1", 0))
    listener.listen(50)

    def take() -> None:
        with suppress(OSError):
            while True:
                taken.append(listener.accept()[0])

    threading.Thread(target=take, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", taken
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_a_server_that_never_answers_is_asked_once_a_run_and_once_a_sweep(
    hung: tuple[str, list[socket.socket]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    uri, taken = hung
    monkeypatch.setattr("slimrun.runner.tracking.store.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(attempt, "SLOW_SECONDS", 0.1)
    tracker = MLflow(uri, outbox=str(tmp_path / "outbox"))
    run(tracker, tmp_path / "alone")
    assert tracker.deliver_waiting() == (0, 1)
    assert len(taken) == 1
    assert "no answer within 0.2 s" in capsys.readouterr().err

    attempt.away.clear()  # another process
    sweep = sweep_in(tmp_path / "sweep")
    tracker.begin_sweep(sweep)
    assert len(taken) == 2
    for number in range(3):
        attempt.away.clear()  # jobs in processes of their own
        run(tracker, sweep / str(number), sweep)
    ended(sweep)
    tracker.deliver_sweep(sweep)
    assert len(taken) == 2
    run(MLflow(f"{uri}/other", outbox=tracker.outbox), sweep / "3", sweep)
    assert len(taken) == 3, "another server is asked"
    tracker.begin_sweep(sweep)
    assert len(taken) == 4, "a new start asks anew"
    assert len(list((tmp_path / "outbox").glob("*.json"))) == 6


def test_a_monitor_whose_server_hangs_is_left_behind(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()

    class Hanging:
        finish = staticmethod(stop.wait)

    monkeypatch.setattr("slimrun.runner.tracking.store.Store.watch_machine", lambda self, run_id: Hanging())
    monkeypatch.setattr("slimrun.runner.tracking.mlflow.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(attempt, "SLOW_SECONDS", 0.1)
    tracker = MLflow(f"sqlite:///{database}", outbox=str(tmp_path / "outbox"))
    run(tracker, tmp_path / "job")
    stop.set()
    assert tracker.address in attempt.away
    assert len(list((tmp_path / "outbox").iterdir())) == 1
    attempt.away.clear()
    assert tracker.deliver_waiting() == (1, 0)
    assert read(database, RUNS) == [("slimrun", "FINISHED", "")]
    assert not list(tmp_path.rglob(AWAY))


def test_records_and_messages_hold_no_password(
    hung: tuple[str, list[socket.socket]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (uri, taken), secret = hung, "s3cr3tpw"
    monkeypatch.setattr("slimrun.runner.tracking.store.ANSWER_SECONDS", 0.2)
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    tracker = MLflow(uri.replace("http://", f"http://bob:{secret}@"), outbox=str(tmp_path / "outbox"))
    shown = uri.replace("http://", "http://bob:***@")
    sweep = sweep_in(tmp_path / "sweep")
    tracker.begin_sweep(sweep)
    run(tracker, sweep / "0", sweep)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if secret in path.read_text(encoding="utf-8")]
    [entry] = (tmp_path / "outbox").glob("*.json")
    assert json.loads(entry.read_text())["uri"] == shown
    assert base64.b64encode(f"bob:{secret}".encode()).decode() in taken[0].recv(4096).decode(), "it is used"
    err = capsys.readouterr().err
    assert f"tracking.uri={shown} does not take the run" in err
    assert secret not in err


def test_the_bundle_is_a_logged_model_whose_scores_name_their_data(database: Path, tmp_path: Path) -> None:
    job, tracker = tmp_path / "job", MLflow(f"sqlite:///{database}", outbox=str(tmp_path / "outbox"))
    scores = {"arc/quant": 0.5, "fidelity_own/kl_mean": 0.1, "data/arc": "a" * 64, "data/own": "b" * 64}
    run(tracker, job, **scores)
    client = MlflowClient(tracker.tracking_uri)
    experiment = client.get_experiment_by_name("slimrun")
    [model] = client.search_logged_models([experiment.experiment_id])
    assert (str(model.status), model.source_run_id) == ("READY", run_in(job / RUN, tracker.target)["run_id"])
    linked = {metric.key: (metric.dataset_name, metric.dataset_digest) for metric in model.metrics}
    assert linked["arc/quant"] == ("arc", "a" * 36)
    assert linked["fidelity_own/kl_mean"] == ("own", "b" * 36)
    assert linked["size/file_bytes"] == (None, None)
