"""An MLflow database in a SQLite file is there whole or not at all: it is made beside its place and then renamed."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from filelock import FileLock
from mlflow.store.db.utils import _get_latest_schema_revision
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from slimrun.ops.files import sync
from slimrun.runner.tracking.uri import sqlite_uri

BESIDE = ("", "-journal", "-wal", "-shm")  # what SQLite names after a database
LOCK_SECONDS = 20  # for the writer of another process
MADE_BY_MLFLOW = {"alembic_version", "experiments", "workspaces"}  # tables with rows from the start


def ensure(file: Path) -> None:
    """Make the database when there is none, or when a killed process has left one half made and empty.

    One process makes it, the others wait: parallel migrations crash. ValueError, one line that names the file, when
    what is there can neither be used nor replaced.
    """
    file = file.resolve()  # a link stays a link
    with FileLock(f"{file}.lock"):
        if not file.exists() or not file.stat().st_size or not _usable(file):
            _make(file)


def _usable(file: Path) -> bool:
    """Whether it is an MLflow database of this version; False when it is none and holds nothing of a user's."""
    try:
        with closing(sqlite3.connect(file, timeout=LOCK_SECONDS)) as database:  # it applies a journal left by a kill
            names = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
            if names and "experiments" not in names:
                raise ValueError(f"{file} holds tables of another program; name another file in tracking.uri")
            if "alembic_version" in names:
                versions = database.execute("select version_num from alembic_version").fetchall()
                if versions == [(_get_latest_schema_revision(),)]:
                    return True
            filled = {name for name in names if database.execute(f'select 1 from "{name}" limit 1').fetchone()}
            own = "experiments" in filled and database.execute("select count(*) from experiments").fetchone()[0] > 1
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"{file} cannot be read as a database: {error}; move it away, or name another in tracking.uri"
        ) from error
    if own or filled - MADE_BY_MLFLOW:
        raise ValueError(
            f"{file} is of another version of MLflow, or half migrated, and not empty; copy it, then: "
            f"mlflow db upgrade {sqlite_uri(file)}"
        )
    return False


def _make(file: Path) -> None:
    scratch = file.with_name(f".{file.name}.making")  # one name, under the lock: what a kill leaves does not pile up
    _remove(scratch, BESIDE)
    try:
        store = SqlAlchemyStore(sqlite_uri(scratch), (file.parent / "mlartifacts").as_uri())
        store.engine.dispose()
        sync(scratch)
        _remove(file, BESIDE[1:])  # SQLite would apply the old file's journal to the new one
        os.replace(scratch, file)
        sync(file.parent)
    finally:
        _remove(scratch, BESIDE)


def _remove(database: Path, endings: tuple[str, ...]) -> None:
    for ending in endings:
        database.with_name(database.name + ending).unlink(missing_ok=True)
