"""`slimrun ...` as a user types it: in this process, or in one of its own where the process is the point."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from slimrun.runner import main as command_line
from slimrun.runner.sweep import SweepCallback
from slimrun.runner.tracking import attempt
from tests.conftest import cache_folder

ROOT = Path(__file__).parents[2]
TINY = ["model=tiny_llama", "task.perplexity.windows=12", "task.perplexity.window=64", "calibration.samples=4"]
FAST = [*TINY, "task=[perplexity]"]


def slimrun(folder: Path, *arguments: str, cache: Path | None = None) -> tuple[int, str, str]:
    """Exit status, stdout and stderr; started in `folder`, where its cache is too unless it is told another.

    In this process: one of its own takes seconds to import all.
    """
    out, err = io.StringIO(), io.StringIO()
    SweepCallback.status = None
    attempt.away.clear()
    attempt.said.clear()
    with (
        mock.patch.dict(os.environ, {"SLIMRUN_CACHE": str(cache or folder / "cache"), "COLUMNS": "300"}),
        mock.patch.object(sys, "argv", ["slimrun", *arguments]),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _logging_as_before(),
        pytest.raises(SystemExit) as end,
    ):
        command_line.main()
    return int(end.value.code or 0), out.getvalue(), err.getvalue()


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own, stdin closed."""
    environment = os.environ | {"SLIMRUN_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    return subprocess.Popen(
        [sys.executable, "-m", "slimrun", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(folder: Path) -> list[dict[str, object]]:
    """Every results.json below the folder, by its path."""
    paths = [path for path in sorted(folder.rglob("results.json")) if "mlartifacts" not in path.parts]
    return [json.loads(path.read_text()) for path in paths]


@contextlib.contextmanager
def _logging_as_before() -> Iterator[None]:
    """Hydra gives the root logger handlers of its own, and closes all that are there.

    absl's, which rouge_score brings, would close with it the stream it was made with: pytest's.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with mock.patch.object(logging, "_handlerList", []):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


class Console:
    """Runs `slimrun ...` in an empty directory, with the user's own cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        return slimrun(self.folder, *arguments, cache=cache_folder())
