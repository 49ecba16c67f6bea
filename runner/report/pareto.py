"""What a multirun found: every job's score against its bits per weight, and which jobs no other one beats in both.

`sweep.json` in a sweep's folder lists the jobs, each one's `results.json` has its numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimrun.runner.folder import RESULTS, SWEEP, read_json
from slimrun.runner.overrides import distinct

BITS = "size/bits_per_weight"
SAME_MODEL = "{:.3g}"  # float scores of one model agree to three digits on every device


@dataclass(frozen=True)
class Measure:
    """Which numbers of a task are its score."""

    name: str
    quant: str
    float: str
    higher_is_better: bool = True
    in_percent: bool = False  # its interval is one of the change in percent, not of the difference


MEASURES = (
    Measure("perplexity", "quant", "float", higher_is_better=False, in_percent=True),
    Measure("accuracy", "accuracy_quant", "accuracy_float"),
    Measure("ROUGE-L", "rougeL_quant", "rougeL_float"),
    Measure("BLEU", "bleu_quant", "bleu_float"),
)


@dataclass(frozen=True)
class Job:
    """A job of the sweep; `label` is what its overrides say that not all jobs say."""

    number: int
    label: str
    overrides: list[str]
    folder: str  # relative to the sweep's
    results: dict[str, Any]

    @property
    def status(self) -> str:
        """How it ended, with the reason when it failed."""
        error = self.results.get("error")
        return f"{self.results['status']}: {error}" if error else str(self.results["status"])

    @property
    def ok(self) -> bool:
        """Whether it has numbers."""
        return self.results.get("status") == "ok"


@dataclass(frozen=True)
class Point:
    """A job in a panel; the interval is that of the paired difference from the float model (95 %)."""

    job: int
    label: str
    bits: float
    score: float
    low: float
    high: float
    on_front: bool


@dataclass(frozen=True)
class Panel:
    """Jobs that were measured alike: same task, signature, float score and number of weights."""

    title: str
    signature: str
    higher_is_better: bool
    float_score: float
    weights: int
    points: list[Point]

    @property
    def front(self) -> list[Point]:
        """The points that no other one beats, from few bits to many."""
        return sorted((point for point in self.points if point.on_front), key=lambda point: point.bits)


def jobs(sweep_folder: Path) -> list[Job]:
    """The jobs that `sweep.json` lists, by number; one that left no results.json has the status listed there."""
    listed = json.loads((sweep_folder / SWEEP).read_text(encoding="utf-8"))["jobs"]
    labels = distinct([row["overrides"] for row in listed])
    found = [
        Job(
            row["number"], label, row["overrides"], row["folder"], _results(sweep_folder / row["folder"], row["status"])
        )
        for row, label in zip(listed, labels)
    ]
    return sorted(found, key=lambda job: job.number)


def panels(found: Sequence[Job]) -> list[Panel]:
    """One panel for each score of the finished jobs; what was not measured alike does not share one."""
    groups: dict[tuple[str, ...], list[tuple[Job, str, Measure]]] = {}
    for job in found:
        if not job.ok:
            continue
        for task in [key.partition("/")[0] for key in job.results if key.endswith("/signature")]:
            for measure in MEASURES:
                if f"{task}/{measure.quant}" in job.results:
                    alike = (
                        task,
                        measure.name,
                        str(job.results[f"{task}/signature"]),
                        SAME_MODEL.format(job.results[f"{task}/{measure.float}"]),
                        str(job.results["size/int8_bytes"]),
                    )
                    groups.setdefault(alike, []).append((job, task, measure))
    return [_panel(members) for members in groups.values()]


def beaten(point: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    """Whether another point (both numbers: less is better) is at least as good in both and better in one."""
    return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in others)


def _panel(members: Sequence[tuple[Job, str, Measure]]) -> Panel:
    first, task, measure = members[0]
    sign = -1 if measure.higher_is_better else 1
    costs = [(job.results[BITS], sign * job.results[f"{task}/{measure.quant}"]) for job, _, _ in members]
    points = []
    for (job, _, _), cost in zip(members, costs):
        low, high = _interval(job, task, measure)
        score = job.results[f"{task}/{measure.quant}"]
        points.append(Point(job.number, job.label, job.results[BITS], score, low, high, not beaten(cost, costs)))
    return Panel(
        title=task if task == measure.name else f"{task}: {measure.name}",
        signature=first.results[f"{task}/signature"],
        higher_is_better=measure.higher_is_better,
        float_score=first.results[f"{task}/{measure.float}"],
        weights=first.results["size/int8_bytes"],
        points=points,
    )


def _interval(job: Job, task: str, measure: Measure) -> tuple[float, float]:
    """The float score moved by both ends of the paired difference."""
    start = job.results[f"{task}/{measure.float}"]
    low, high = (job.results[f"{task}/{end}"] for end in ("ci_low", "ci_high"))
    return (start * (1 + low / 100), start * (1 + high / 100)) if measure.in_percent else (start + low, start + high)


def _results(folder: Path, status: str) -> dict[str, Any]:
    found = read_json(folder / RESULTS)
    if found is None and status == "ok":
        return {"status": "failed", "error": f"no results in {folder}"}
    return found or {"status": status}
