"""Addresses of tracking stores: what is in force, what is refused, and that no password is ever shown."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from slimrun.runner import main
from slimrun.runner.tracking.mlflow import MLflow
from slimrun.runner.tracking.uri import VARIABLE, conceal, database_file, masked, sqlite_uri

SECRET = "s3cr3tpw"
WITH_PASSWORD = [
    f"http://bob:{SECRET}@127.0.0.1:9",
    f"https://{SECRET}@host/path",
    f"https://bob:{SECRET}%40@host/#/x",
    f"postgresql://bob:{SECRET}/?#x@host/db",
    f"postgresql+psycopg2://:{SECRET}@host/db",
    f"mysql+pymysql://bob:p@{SECRET}@host/db",
    f"postgresql://host/db?user=bob&password={SECRET}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{SECRET}",
]
WITHOUT = ["http://host:5000/x", "sqlite:////home/a:b@c/mlflow.db", "postgresql://bob@host/db", "file:///a:b@c"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (VARIABLE, "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")  # and as it was after the test, whatever is set in between
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("uri", WITH_PASSWORD)
def test_a_password_is_masked_everywhere_but_where_the_store_is_opened(uri: str) -> None:
    [override] = conceal([f"tracking.uri='{uri}'"])
    assert SECRET not in override
    assert "***" in override
    shown = override.removeprefix("tracking.uri='").removesuffix("'")
    assert shown == masked(uri) == masked(shown)
    tracker = MLflow(shown)
    assert tracker.tracking_uri == uri
    assert tracker.address == shown
    assert SECRET not in tracker.look_next()
    assert SECRET not in masked(f'it said "{uri}"; see <{uri}>')
    os.environ[VARIABLE] = "http://another"
    with pytest.raises(ValueError, match=r"^tracking\.uri=.*\*\*\*.* has its password masked; write it in place of"):
        tracker.check()


@pytest.mark.parametrize("uri", WITHOUT)
def test_what_holds_no_password_stays_as_it_is(uri: str) -> None:
    assert masked(uri) == uri
    assert conceal([f"tracking.uri='{uri}'", "quant=w8a8"]) == [f"tracking.uri='{uri}'", "quant=w8a8"]
    assert os.environ[VARIABLE] == ""


def test_a_password_from_a_file_is_masked_before_hydra_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine" / "tracking" / "team.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"_target_: slimrun.runner.tracking.mlflow.MLflow\nuri: {WITH_PASSWORD[0]}\n", encoding="utf-8")
    command = ["slimrun", "--config-dir", str(tmp_path / "mine"), "tracking=team", "--cfg", "job"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="0"):
        main.main()
    out = capsys.readouterr().out
    assert "uri: http://bob:***@127.0.0.1:9" in out
    assert MLflow("http://bob:***@127.0.0.1:9").tracking_uri == WITH_PASSWORD[0]


def test_the_environment_speaks_where_the_command_line_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (MLflow().tracking_uri, MLflow().experiment_name) == (f"sqlite:///{Path.cwd() / 'mlflow.db'}", "slimrun")
    monkeypatch.setenv(VARIABLE, "http://team:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team")
    assert (MLflow().tracking_uri, MLflow().experiment_name) == ("http://team:5000", "team")
    assert MLflow().look_next() == "open http://team:5000"
    told = MLflow("sqlite:///runs.db", "mine")
    assert (told.tracking_uri, told.experiment_name) == (f"sqlite:///{Path.cwd() / 'runs.db'}", "mine")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("foo://bob:pw@host", "has no known scheme; allowed: http, https, sqlite,"),
        ("mlruns", "has no known scheme"),
        ("http://", "names no server"),
        ("https://:5000", "names no server"),
        ("http://host:port", "Port could not be cast"),
        ("sqlite:mlflow.db", "names no file; write sqlite:///FILE"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///folder", "is a folder; name a file in it, e.g."),
        ("sqlite:///text.db?timeout=3", "is no SQLite database"),
    ],
)
def test_an_address_that_no_store_can_have_is_one_line(uri: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("folder").mkdir()
    Path("text.db").write_text("no database at all", encoding="utf-8")
    for tracker, key in ((MLflow(uri), "tracking.uri"), (MLflow(), VARIABLE)):
        with pytest.raises(ValueError, match=f"^{re.escape(f'{key}={masked(uri)}: ')}") as error:
            tracker.check()
        assert reason in str(error.value)
        assert "pw" not in str(error.value)
        assert "\n" not in str(error.value)
        monkeypatch.setenv(VARIABLE, uri)


@pytest.mark.parametrize("name", ["", "   "])
def test_an_experiment_has_a_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"^experiment='.*' is empty; give a name"):
        MLflow(experiment=name)


@pytest.mark.parametrize(
    "name", ["plain", "what now?", "a b", "50%", "a%20b", "100%3F", "#1", "it's", "水?", 'a"b&c=d']
)
def test_the_database_of_any_folder_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    uri = MLflow().tracking_uri
    assert database_file(uri) == folder / "mlflow.db"
    engine = create_engine(uri)
    with engine.begin() as connection:
        connection.execute(text("create table here (x)"))
    engine.dispose()
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("select name from sqlite_master").fetchall() == [("here",)]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    relative = MLflow("sqlite:///runs.db?timeout=30").tracking_uri
    assert database_file(relative) == folder / "runs.db"
    assert relative == f"{sqlite_uri(folder / 'runs.db')}?timeout=30"
