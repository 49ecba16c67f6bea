"""A database of MLflow that is made once, and the command line in an empty folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from slimrun.runner.tracking.database import ensure

from .console import Console


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are read by their rows, of a window that is wide enough for them; pytest's workers say another width."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow's migrations have made, which takes them seconds."""
    file = tmp_path_factory.mktemp("made") / "mlflow.db"
    ensure(file)
    assert sorted(path.name for path in file.parent.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    return file


@pytest.fixture
def database(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path / "mlflow.db"))


@pytest.fixture
def quick_migrations(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Made:
        def __init__(self, uri: str, artifacts: str) -> None:
            shutil.copy(made, uri.removeprefix("sqlite:///"))
            self.engine = self

        def dispose(self) -> None:
            pass

    monkeypatch.setattr("slimrun.runner.tracking.database.SqlAlchemyStore", Made)


@pytest.fixture
def slimrun(tmp_path: Path) -> Console:
    folder = tmp_path / "work"
    folder.mkdir()
    return Console(folder)
