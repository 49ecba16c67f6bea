"""mlflow.db is there whole or not at all, whatever was killed, and nothing of others is touched."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from slimrun.runner.tracking.database import ensure
from slimrun.runner.tracking.mlflow import MLflow
from tests.runner.tracked import RUNS, change, read, run


def test_a_killed_maker_leaves_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed:
        def __init__(self, uri: str, artifacts: str) -> None:
            change(Path(uri.removeprefix("sqlite:///")), "create table experiments (x)")
            raise KeyboardInterrupt

    monkeypatch.setattr("slimrun.runner.tracking.database.SqlAlchemyStore", Killed)
    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path / "mlflow.db")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db.lock"]


HALF_MADE = {
    "nothing in it": ["create table x (y)", "drop table x"],
    "first tables": ["create table experiments (experiment_id)", "create table runs (run_uuid)"],
    "in a migration": ["create table experiments (name)", "create table alembic_version (version_num)",
                       "create table _alembic_tmp_runs (x)",
                       "insert into alembic_version values ('451aebb31d03')", "create table runs (run_uuid)"],
    "before the last one": ["create table alembic_version (version_num)", "create table experiments (name)",
                            "insert into alembic_version values ('not the last')",
                            "insert into experiments values ('Default')"],
}  # fmt: skip


@pytest.mark.usefixtures("quick_migrations")
@pytest.mark.parametrize("statements", HALF_MADE.values(), ids=HALF_MADE)
def test_a_half_made_database_that_holds_nothing_is_made_anew(statements: list[str], tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    change(file, *statements)
    (tmp_path / "mlflow.db-wal").write_bytes(b"of the old file")
    (tmp_path / ".mlflow.db.making").write_bytes(b"left by a kill")
    link = tmp_path / "link" / "mlflow.db"
    link.parent.mkdir()
    link.symlink_to(file)
    tracker = MLflow(f"sqlite:///{link}", outbox=str(tmp_path / "outbox"))
    run(tracker, tmp_path / "job")
    assert link.is_symlink()
    assert read(file, RUNS) == [("slimrun", "FINISHED", "")]
    left = {path.name for path in tmp_path.iterdir()} - {"job", "outbox", "mlartifacts", "link"}
    assert left == {"mlflow.db", "mlflow.db.lock"}


@pytest.mark.usefixtures("quick_migrations")
def test_a_journal_that_a_kill_left_is_applied_to_its_own_file_only(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    change(file, "create table experiments (experiment_id)")
    with closing(sqlite3.connect(file)) as writer:
        writer.execute("pragma cache_size = 1")
        writer.execute("create table runs (run_uuid)")
        writer.executemany("insert into runs values (?)", [("x" * 4000,)] * 100)
        for name in ("mlflow.db", "mlflow.db-journal"):
            shutil.copy(tmp_path / name, tmp_path / f"copy of {name}")
    for name in ("mlflow.db", "mlflow.db-journal"):
        shutil.move(tmp_path / f"copy of {name}", tmp_path / name)
    ensure(file)
    assert read(file, "pragma integrity_check") == [("ok",)]
    assert read(file, "select count(*) from runs") == [(0,)]
    assert not (tmp_path / "mlflow.db-journal").exists()


@pytest.mark.usefixtures("quick_migrations")
@pytest.mark.parametrize(
    "row",
    [
        "insert into runs (run_uuid, status) values ('a', 'FINISHED')",
        "insert into experiments (name, lifecycle_stage) values ('mine', 'active')",
        "insert into registered_models (name) values ('mine')",
    ],
)
def test_a_database_of_another_version_that_holds_something_is_left_alone(
    row: str, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(database, "update alembic_version set version_num = 'another'", row)
    content = database.read_bytes()
    run(MLflow(f"sqlite:///{database}", outbox=str(database.parent / "outbox")), database.parent / "job")
    assert database.read_bytes() == content
    [line] = capsys.readouterr().err.splitlines()
    assert (
        f"{database} is of another version of MLflow, or half migrated, and not empty; copy it, then: mlflow db" in line
    )


def test_the_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    change(tmp_path / "mlflow.db", "create table studies (id)", "create table alembic_version (version_num)")
    with pytest.raises(ValueError, match=r"holds tables of another program; name another file in tracking\.uri"):
        ensure(tmp_path / "mlflow.db")


def test_a_damaged_database_is_named(database: Path) -> None:
    with database.open("r+b") as stream:
        stream.truncate(8192)
    with pytest.raises(ValueError, match=f"^{database} cannot be read as a database: .*; move it away, or name"):
        ensure(database)
