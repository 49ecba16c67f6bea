"""Which jobs of a sweep their items tell apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slimrun.evaluation.statistics import paired_difference
from slimrun.runner.folder import OUTPUTS, SCORES, SWEEP, write_json, write_scores
from slimrun.runner.pairs import told_apart, told_by
from slimrun.runner.report import pareto
from slimrun.runner.report import sweep as report
from tests.evaluation.test_gate import row
from tests.runner.test_compare import finished


def swept(folder: Path, noises: list[float]) -> list[pareto.Job]:
    """Jobs whose quantization moved the fake model by these much; the more it moved, the fewer bits they have."""
    for number, noise in enumerate(noises):
        job = finished(folder / str(number), noise)
        results = json.loads((job / "results.json").read_text())
        write_json(job / "results.json", results | {"size/int8_bytes": 1000, "size/bits_per_weight": 9 - 2 * noise})
        own = row("perplexity", 100 * noise, 100 * noise + 1, unit="%", higher_is_better=False)
        perplexity = round(results["perplexity/quant"], 4)  # the last digits are the machine's
        write_scores(job / SCORES, [replace(own, quant_value=perplexity)])
    listed = [
        {"number": number, "overrides": [f"noise={noise}"], "folder": str(number), "status": "ok"}
        for number, noise in enumerate(noises)
    ]
    write_json(folder / SWEEP, {"jobs": listed})
    return pareto.read_jobs(folder)


def test_the_best_is_told_apart_where_items_tell(tmp_path: Path) -> None:
    jobs = swept(tmp_path, [0.0, 0.3, 1e-9])
    [panel] = told_apart(tmp_path, jobs, pareto.panels(jobs))
    assert (panel.best, panel.ties) == (2, [0])
    assert panel.told == "perplexity: points: best is job 2; not told apart from it: job 0"
    tags = report.best(jobs, report.summary(tmp_path, jobs, set()), [panel])
    assert f"job 2 ({jobs[2].overrides[0]})" in tags["best.perplexity"]  # of equal scores that with the fewest bits
    assert tags["best.perplexity"].endswith("; not told apart from it: job 0")
    page = report.write(tmp_path, jobs, [panel])[2].read_text()
    assert "not told apart from it: job 0" in page
    assert json.loads((tmp_path / "pareto.json").read_text())["panels"][0]["ties"] == [0]


def test_a_job_whose_files_are_damaged_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = swept(tmp_path, [0.0, 0.3, 1e-9])
    (tmp_path / "0" / OUTPUTS).write_bytes(b"PK\x05\x06" + bytes(18))  # an archive of nothing
    [panel] = told_apart(tmp_path, jobs, pareto.panels(jobs))
    assert panel.ties == [0]
    assert "note: jobs 2 and 0 are not compared (" in capsys.readouterr().err


def test_neighbours_on_the_front_are_told_apart_or_not(tmp_path: Path) -> None:
    jobs = swept(tmp_path, [0.0, 0.3, 0.3, 0.6])
    [panel] = told_apart(tmp_path, jobs, pareto.panels(jobs))
    assert [point.job for point in panel.front] == [3, 1, 2, 0]
    assert panel.ties == []
    assert panel.told.endswith("every other one is worse beyond chance")
    assert panel.like_the_one_before == [2]


def drawn_alike(rng: np.random.Generator, jobs: int, worse: float = 0.0) -> pareto.Panel:
    """A panel of equal jobs, but for the last, with what their items tell."""
    losses = rng.normal(size=(jobs, 100))
    losses[-1] += worse
    points = [pareto.Point(job, "", 8 + job, loss.mean(), None, None, "", False) for job, loss in enumerate(losses)]
    panel = pareto.Panel("t", "t", "", False, 0.0, 1, pareto.AXES[0], points)
    others = [job for job in range(jobs) if job != panel.best]
    pairs = {(0, panel.best, job): paired_difference(losses[panel.best], losses[job]).p_value for job in others}
    return told_by(pairs, [panel])[0]


def test_equal_jobs_are_seldom_told_apart_though_the_best_is_chosen_by_the_same_items() -> None:
    rng = np.random.default_rng(1)
    wrong = sum(len(drawn_alike(rng, 20).ties or []) < 19 for _ in range(400))
    assert 0.01 < wrong / 400 < 0.06  # all pairs are more than those beside the best, and alike: below 5 %
    assert all(19 not in (drawn_alike(rng, 20, worse=1.5).ties or []) for _ in range(20))


def test_what_cannot_be_paired_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = swept(tmp_path, [0.0, 0.3])
    (tmp_path / "1" / "outputs.npz").unlink()
    [panel] = told_apart(tmp_path, jobs, pareto.panels(jobs))
    assert panel.ties == [1]
    assert "note: jobs 0 and 1 are not compared (" in capsys.readouterr().err
