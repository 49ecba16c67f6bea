"""`slimrun ...` without a process of its own, which costs seconds of imports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from slimrun.runner import main as command_line
from slimrun.runner.sweep import SweepCallback


class Console:
    """Runs `slimrun ...` in this process, in an empty directory with a cache of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capfd = folder, monkeypatch, capfd
        monkeypatch.chdir(folder)

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        self.monkeypatch.setattr(sys, "argv", ["slimrun", *arguments])
        self.monkeypatch.setattr(SweepCallback, "unfinished", None)
        with pytest.raises(SystemExit) as exit_info:
            command_line.main()
        out, err = self.capfd.readouterr()
        return int(exit_info.value.code or 0), out, err


@pytest.fixture
def slimrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Console:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.setenv("SLIMRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    return Console(folder, monkeypatch, capfd)
