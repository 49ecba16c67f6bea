"""What a multirun found: every job's score against its size, and which jobs no other one beats in both.

`sweep.json` in a sweep's folder lists the jobs, each one's `results.json` has its sizes and `scores.json` its scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimrun.evaluation.comparison import Score
from slimrun.runner.folder import RESULTS, SCORES, SWEEP, read_json, read_scores
from slimrun.runner.overrides import distinct

BITS = "size/bits_per_weight"
AXES = ("bits_per_weight", "bits_per_parameter")  # what sizes are drawn as
SAME_MODEL = "{:.3g}"  # float scores of one model agree to three digits on every device


@dataclass(frozen=True)
class Job:
    """A job of the sweep; `label` is what its overrides say that not all jobs say."""

    number: int
    label: str
    overrides: list[str]
    folder: str  # relative to the sweep's
    results: dict[str, Any]
    scores: list[Score]

    @property
    def status(self) -> str:
        """How it ended, with the reason when it failed."""
        error = self.results.get("error")
        return f"{self.results['status']}: {error}" if error else str(self.results["status"])

    @property
    def ok(self) -> bool:
        """Whether it has numbers."""
        return self.results.get("status") == "ok"

    @property
    def seconds(self) -> float:
        """Wall seconds of its stages."""
        return float(sum(value for key, value in self.results.items() if key.startswith("time/")))


@dataclass(frozen=True)
class Point:
    """A job in a panel; low and high are the ends of the paired difference's interval (95 %), None where none holds."""

    job: int
    label: str
    bits: float
    score: float
    low: float | None
    high: float | None
    verdict: str
    on_front: bool


@dataclass(frozen=True)
class Panel:
    """Jobs that were measured alike: same score, signature, float score and number of weights."""

    title: str
    task: str
    signature: str
    higher_is_better: bool
    float_score: float
    weights: int
    axis: str  # of AXES: what `bits` of the points are
    points: list[Point]
    ties: list[int] | None = None  # jobs that their items do not tell apart from the best; None: not compared
    like_the_one_before: list[int] = field(default_factory=list)  # on the front, with a little more bits

    @property
    def best(self) -> int:
        """The job with the best score; of equal ones that with the fewest bits."""
        sign = -1 if self.higher_is_better else 1
        return min(self.points, key=lambda point: (sign * point.score, point.bits)).job

    @property
    def told(self) -> str:
        """Which job is best, and which are not told apart from it."""
        best = f"{self.title}: best is job {self.best}"
        if self.ties is None or len(self.points) == 1:
            return best
        if not self.ties:
            return f"{best}; every other one is worse beyond chance"
        return f"{best}; not told apart from it: job {', '.join(map(str, self.ties))}"

    @property
    def front(self) -> list[Point]:
        """The points that no other one beats, from few bits to many."""
        return sorted((point for point in self.points if point.on_front), key=lambda point: point.bits)


def read_jobs(sweep_folder: Path) -> list[Job]:
    """The jobs that `sweep.json` lists, by number; one that left no results.json has the status listed there."""
    listed = json.loads((sweep_folder / SWEEP).read_text(encoding="utf-8"))["jobs"]
    labels = distinct([row["overrides"] for row in listed])
    jobs = [
        Job(row["number"], label, row["overrides"], row["folder"], *_left(sweep_folder / row["folder"], row["status"]))
        for row, label in zip(listed, labels)
    ]
    return sorted(jobs, key=lambda job: job.number)


def panels(jobs: Sequence[Job], axis: str = AXES[0]) -> list[Panel]:
    """One panel for each task's own score of the finished jobs; what was not measured alike does not share one."""
    groups: dict[tuple[str, ...], list[tuple[Job, Score]]] = {}
    for job in jobs:
        for score in job.scores:
            if score.verdict:
                model = (SAME_MODEL.format(score.float_value), str(job.results["size/int8_bytes"]))
                groups.setdefault((score.label, score.signature, *model), []).append((job, score))
    return [_panel(members, axis) for members in groups.values()]


def beaten(point: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    """Whether another point (both numbers: less is better) is at least as good in both and better in one."""
    return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in others)


def _panel(members: Sequence[tuple[Job, Score]], axis: str) -> Panel:
    first, score = members[0]
    sign = -1 if score.higher_is_better else 1
    costs = [(job.results[f"size/{axis}"], sign * score.quant_value) for job, score in members]
    points = []
    for (job, score), cost in zip(members, costs):
        low, high = score.range or (None, None)
        front = not beaten(cost, costs)
        points.append(Point(job.number, job.label, cost[0], score.quant_value, low, high, score.verdict, front))
    return Panel(
        title=score.label,
        task=score.task,
        signature=score.signature,
        higher_is_better=score.higher_is_better,
        float_score=score.float_value,
        weights=first.results["size/int8_bytes"],
        axis=axis,
        points=points,
    )


def _left(folder: Path, status: str) -> tuple[dict[str, Any], list[Score]]:
    """What a job left in its folder: results and rows."""
    results, scores = read_json(folder / RESULTS), read_scores(folder / SCORES)
    if (results or {"status": status})["status"] != "ok":
        return results or {"status": status}, []
    if results is None or scores is None:
        return {"status": "failed", "error": f"no {RESULTS if results is None else SCORES} in {folder}"}, []
    return results, scores
