"""A run that was killed, started again: the same bundle, and a word on where it goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from slimrun.ops.calibration.journal import Journal
from slimrun.ops.calibration.states import Walk
from slimrun.runner import resume

from .console import FAST, slimrun

LAST_STEP = 9  # of calibration


def artifact(folder: Path, name: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / name / "artifact").iterdir()}


def test_a_stopped_run_goes_on_to_the_same_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*FAST, "quant.observer=minmax", "tracking=none"]
    assert slimrun(tmp_path, *arguments, "hydra.run.dir=whole", f"cache.dir={tmp_path / 'other'}")[0] == 0
    monkeypatch.setattr(Journal, "due", property(lambda self: self.folder is not None))
    run_part, steps = Walk.__iter__, []

    def stopped(self: Walk):  # type: ignore[no-untyped-def]
        for step in run_part(self):
            steps.append(step)
            if len(steps) == LAST_STEP:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(Walk, "__iter__", stopped)
    status, _, err = slimrun(tmp_path, *arguments, "hydra.run.dir=stopped")
    assert status != 0
    assert list((tmp_path / "cache" / resume.FOLDER).glob("*/*.safetensors"))
    monkeypatch.setattr(Walk, "__iter__", run_part)
    status, _, err = slimrun(tmp_path, *arguments, "hydra.run.dir=again")
    assert status == 0
    assert "note: a stopped attempt of this job is gone on with" in err
    assert "goes on after part 2 of 3, where it was stopped" in (tmp_path / "again" / "run.log").read_text()
    assert artifact(tmp_path, "again") == artifact(tmp_path, "whole")
    assert not any((tmp_path / "cache" / resume.FOLDER).iterdir())


def test_notes_that_nobody_went_on_with_are_removed(tmp_path: Path) -> None:
    for name, age in (("old", resume.SECONDS + 60), ("new", 60)):
        (tmp_path / resume.FOLDER / name).mkdir(parents=True)
        os.utime(tmp_path / resume.FOLDER / name, (time.time() - age,) * 2)
    resume.clear(tmp_path)
    assert [folder.name for folder in (tmp_path / resume.FOLDER).iterdir()] == ["new"]
