"""What a search for the smallest size leaves in its folder, and takes from it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.types import RunMode

from slimrun.runner.config import composed
from slimrun.runner.folder import SWEEP, read_json, write_json, write_scores
from slimrun.runner.how_small import dial_of, put_in_place
from slimrun.runner.report.pareto import read_jobs
from slimrun.runner.sweep import begin, conclude
from slimrun.runner.sweeper import HowSmallSweeper
from slimrun.runner.tracking.none import NoTracking

from .test_how_small import TRIES, job


class Walk:
    """A search in a folder whose jobs run nothing: they lose `lost` percent a bit less than eight, give or take 0.1."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder, self.lost, self.gate, self.breaks = folder, 2.0, "", False
        self.config = composed(["experiment=how_small", f"hydra.sweep.dir={folder}", *overrides], mode=RunMode.MULTIRUN)
        folder.mkdir(exist_ok=True)
        begin(folder, ["experiment=how_small"], [], resume=True)

    def launch(self, job_overrides: list[list[str]], initial_job_idx: int) -> None:
        [overrides] = job_overrides
        bits = float(overrides[-1].partition("=")[2])
        done, home = job(bits, low := self.lost * (8 - bits) - 0.1, low + 0.2), self.folder / str(initial_job_idx)
        own = {"job": initial_job_idx, "overrides": overrides, "config_hash": f"{bits} {self.lost}",
               "size/int8_bytes": 1000, **({"gate/verdict": self.gate} if self.gate and bits < 6 else {})}  # fmt: skip
        home.mkdir(exist_ok=True)
        if self.breaks:
            write_json(home / "results.json", {"status": "failed", "error": "out of memory", **own})
            return
        write_json(home / "results.json", done.results | own)
        write_scores(home / "scores.json", done.scores)
        (home / "artifact").mkdir(exist_ok=True)
        (home / "artifact" / "bits").write_text(str(bits))

    def __call__(self) -> tuple[int, list[int]]:
        """The exit status, and which jobs are there."""
        begin(self.folder, ["experiment=how_small"], [], resume=True)
        sweeper = HowSmallSweeper(TRIES)
        sweeper.config, sweeper.launcher = self.config, self  # type: ignore[assignment]
        sweeper.sweep([])
        status = conclude(self.folder, NoTracking(), "bits_per_weight", dial_of(self.config))
        return status, [job["number"] for job in read_json(self.folder / SWEEP)["jobs"]]  # type: ignore[index]


def test_a_shorter_walk_in_the_same_folder_has_no_jobs_of_the_longer_one(tmp_path: Path) -> None:
    walk = Walk(tmp_path / "walk", "how_small.min_bits=2.5")
    status, jobs = walk()
    assert (status, len(jobs)) == (0, TRIES)
    in_place = float((walk.folder / "artifact" / "bits").read_text())
    assert 5.5 <= in_place < 5.7
    walk.lost = 0.01  # as if the text had been another one
    assert walk() == (0, [0, 1])
    assert (walk.folder / "artifact" / "bits").read_text() == "2.5"


def test_the_bundle_of_a_walk_that_found_one_is_not_that_of_the_next_which_finds_none(tmp_path: Path) -> None:
    walk = Walk(tmp_path / "walk")
    assert walk()[0] == 0
    walk.lost = 50.0
    assert walk()[0] == 3
    assert not (walk.folder / "artifact").exists()


def test_the_bundle_of_a_walk_stays_when_the_next_one_breaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    walk = Walk(tmp_path / "walk")
    walk()
    found = (walk.folder / "artifact" / "bits").read_text()
    walk.breaks = True
    assert walk()[0] == 1
    assert (walk.folder / "artifact" / "bits").read_text() == found
    assert "\nbundle: none\n" in capsys.readouterr().out
    walk.breaks, walk.lost = False, 50.0  # and still it is known whose it was
    assert walk()[0] == 3
    assert not (walk.folder / "artifact").exists()


def test_a_bundle_that_somebody_took_away_is_nothing_to_take_away(tmp_path: Path) -> None:
    walk = Walk(tmp_path / "walk")
    walk()
    shutil.rmtree(walk.folder / "artifact")
    walk.lost = 50.0
    assert walk()[0] == 3


def test_another_job_s_bundle_is_not_put_in_place(tmp_path: Path) -> None:
    first, second = Walk(tmp_path / "first"), Walk(tmp_path / "second")
    assert first()[0] == 0
    assert second()[0] == 0
    done = read_jobs(second.folder)[0]
    adopted = replace(done, results=done.results | {"done_in": str(first.folder / "0")})
    assert put_in_place(second.folder, adopted) is not None
    first.lost = 50.0
    assert first()[0] == 3
    assert put_in_place(second.folder, adopted) is None


def test_only_the_answer_has_to_pass_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    walk = Walk(tmp_path / "walk")
    walk.gate = "failed"  # below six bits
    assert walk()[0] == 3
    assert "gate: not passed by the smallest, job " in capsys.readouterr().out
    walk.lost = 4.0  # of which less than seven hold
    assert walk()[0] == 0
