"""Which differences between the jobs of a sweep are real: jobs paired with each other, item by item."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

from slimrun.evaluation.statistics import ALPHA, holm
from slimrun.runner import compare
from slimrun.runner.report.pareto import Job, Panel

Pair = tuple[int, int, int]  # number of the panel, two jobs of it


@dataclass(frozen=True)
class Compared:
    """A pair, and the p-value of its difference; None where the items bear none, or rounding makes as much."""

    pair: Pair
    p_value: float | None


def told_apart(folder: Path, jobs: Sequence[Job], panels: Sequence[Panel]) -> list[Panel]:
    """The panels, saying which jobs are not told apart from the best, and which neighbours on a front are not.

    p-values are corrected for all of these comparisons of the sweep (Holm).
    """
    folders = {job.number: folder / job.folder for job in jobs}
    read = cache(compare.read)
    wanted = [(at, *pair) for at, panel in enumerate(panels) for pair in _pairs(panel)]
    done = []
    for at, one, two in wanted:
        try:
            p_value = _p_value(panels[at].task, read(folders[one]), read(folders[two]))
        except ValueError as error:
            print(f"note: jobs {one} and {two} are not compared ({error})", file=sys.stderr)
            p_value = None
        done.append(Compared((at, one, two), p_value))
    known = [item for item in done if item.p_value is not None]
    corrected = holm([item.p_value for item in known if item.p_value is not None])
    real = {item.pair for item, p_value in zip(known, corrected) if p_value < ALPHA}
    return [_told(at, panel, real) for at, panel in enumerate(panels)]


def _pairs(panel: Panel) -> list[tuple[int, int]]:
    """The best job beside every other, and neighbours on the front beside each other."""
    front = [point.job for point in panel.front]
    with_best = [(panel.best, point.job) for point in panel.points if point.job != panel.best]
    neighbours = [pair for pair in pairwise(front) if panel.best not in pair]
    return with_best + neighbours


def _p_value(task: str, a: compare.Run, b: compare.Run) -> float | None:
    own = next(score for score in compare.compared(task, a, b).scores if score.verdict)
    return None if own.within_noise else own.p_value


def _told(at: int, panel: Panel, real: set[Pair]) -> Panel:
    front = [point.job for point in panel.front]
    same = [two for one, two in pairwise(front) if not {(at, one, two), (at, two, one)} & real]
    ties = [point.job for point in panel.points if point.job != panel.best and (at, panel.best, point.job) not in real]
    return replace(panel, ties=ties, like_the_one_before=same)
