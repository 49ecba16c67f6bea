"""Which differences between the jobs of a sweep are real: jobs paired with each other, item by item."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import comb
from pathlib import Path

from slimrun.evaluation.statistics import ALPHA, holm
from slimrun.runner import compare
from slimrun.runner.report.pareto import Job, Panel

Pair = tuple[int, int, int]  # number of the panel, two jobs of it


def told_apart(folder: Path, jobs: Sequence[Job], panels: Sequence[Panel]) -> list[Panel]:
    """The panels, saying which jobs are not told apart from the best, and which neighbours on a front are not."""
    folders = {job.number: folder / job.folder for job in jobs}
    read = cache(compare.read)
    wanted = [(at, *pair) for at, panel in enumerate(panels) for pair in _pairs(panel)]
    p_values: dict[Pair, float | None] = {}
    for at, one, two in wanted:
        try:
            p_values[at, one, two] = _p_value(panels[at].task, read(folders[one]), read(folders[two]))
        except Exception as error:  # files that are damaged raise whatever their reader trips over
            told = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            print(f"note: jobs {one} and {two} are not compared ({told})", file=sys.stderr)
    return told_by(p_values, panels)


def told_by(p_values: Mapping[Pair, float | None], panels: Sequence[Panel]) -> list[Panel]:
    """The same from the p-values of these pairs, None where nothing is known.

    They are corrected (Holm) for all pairs of jobs of the panels: the same items choose which job is best and which
    ones lie on a front, so that any two might have been compared.
    """
    family = sum(comb(len(panel.points), 2) for panel in panels)
    known = {pair: p_value for pair, p_value in p_values.items() if p_value is not None}
    corrected = holm([*known.values(), *[1.0] * (family - len(known))])
    real = {pair for pair, p_value in zip(known, corrected) if p_value < ALPHA}
    return [_told(at, panel, real) for at, panel in enumerate(panels)]


def _pairs(panel: Panel) -> list[tuple[int, int]]:
    """The best job beside every other, and neighbours on the front beside each other."""
    front = [point.job for point in panel.front]
    with_best = [(panel.best, point.job) for point in panel.points if point.job != panel.best]
    neighbours = [pair for pair in pairwise(front) if panel.best not in pair]
    return with_best + neighbours


def _p_value(task: str, a: compare.Run, b: compare.Run) -> float | None:
    """None where the items bear none, or rounding makes as much."""
    own = next(score for score in compare.compared(task, a, b).scores if score.verdict)
    return None if own.within_noise else own.p_value


def _told(at: int, panel: Panel, real: set[Pair]) -> Panel:
    front = [point.job for point in panel.front]
    same = [two for one, two in pairwise(front) if not {(at, one, two), (at, two, one)} & real]
    ties = [point.job for point in panel.points if point.job != panel.best and (at, panel.best, point.job) not in real]
    return replace(panel, ties=ties, like_the_one_before=same)
