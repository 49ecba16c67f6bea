"""One row a score: the float model beside the quantized one on the same items, and how sure the difference is.

Tables, pictures, reports, sweeps, `slimrun-compare` and tracking read these rows and nothing else, so whatever a task
measures is in all of them once it gives a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from slimrun.evaluation import statistics
from slimrun.evaluation.statistics import Clusters, Difference, Reach, Values

Interval = tuple[float, float]  # 95 %
Metrics = dict[str, float | str]  # "<task>/<key>" -> what results.json says

PERCENT = "%"


@dataclass(frozen=True)
class Margin:
    """What may be lost and count as non-inferior; `scale` of its unit are one of the score's own."""

    value: float
    unit: str
    scale: float = 1.0


@dataclass(frozen=True)
class Score:
    """A score of both models on one task.

    The row with a verdict is the task's own: sweeps rank by it, pictures draw it. The others, without, stand beside
    it in tables.
    """

    task: str
    name: str  # of the metric, as people write it: BLEU
    float_value: float
    quant_value: float
    float_interval: Interval | None
    quant_interval: Interval | None  # None where there are too few items to say
    difference: float  # quantized minus float
    interval: Interval | None  # of the paired difference
    p_value: float | None
    detectable: float | None  # the smallest difference that these items would have shown
    unit: str = ""  # of the difference, its interval and the detectable one: "%" of the float value, "" the score's own
    higher_is_better: bool = True
    verdict: str = ""
    signature: str = ""  # what the score depends on; rows of equal ones were measured alike
    p_holm: float | None = None  # corrected for the other tasks of the run; rows with a verdict have it
    margin: float | None = None  # what may be lost and count as non-inferior; rows with a verdict have it
    margin_unit: str = ""
    margin_scale: float = 1.0  # so many of that unit are one of the score's own: 100 points of accuracy
    items: int = 0  # that were paired; rows with a verdict say how many
    noise: float | None = None  # how far the score moves, in the unit of the difference, when nothing but rounding does
    withheld: str = ""  # the verdict where items or float model bear neither "non-inferior" nor "inconclusive"

    @property
    def label(self) -> str:
        """What tables and pictures call it."""
        return self.name if self.name == self.task else f"{self.task}: {self.name}"

    @property
    def word(self) -> str:
        """The verdict without its margin or reason."""
        return self.verdict.partition(" (")[0]

    @property
    def range(self) -> Interval | None:
        """The float value moved by both ends of the difference's interval: where the quantized value lies, paired."""
        if self.interval is None:
            return None
        low, high = self.interval
        if self.unit == PERCENT:
            return self.float_value * (1 + low / 100), self.float_value * (1 + high / 100)
        return self.float_value + low, self.float_value + high

    @property
    def loss(self) -> Interval | None:
        """What was lost, both ends, in the unit of the margin."""
        if self.interval is None:
            return None
        low, high = (self.margin_scale * end for end in self.interval)
        return (-high, -low) if self.higher_is_better else (low, high)

    @property
    def within_noise(self) -> bool:
        """Whether the difference is no more than what rounding alone makes."""
        return self.noise is not None and 0 < abs(self.difference) <= self.noise

    @property
    def decides(self) -> str:
        """From which margin on so many items decide, and how many the row's own margin takes; "" where none is told.

        A margin is decided when a model that loses nothing is found non-inferior 80 % of the time.
        """
        if self.margin is None or not self.detectable or not self.items:
            return ""
        least = self.margin_scale * self.detectable
        told = f"{self.items} items decide margins from {least:.3g} {self.margin_unit} on"
        if least <= self.margin or not self.margin:
            return told
        return f"{told}; {self.margin:g} takes about {math.ceil(self.items * (least / self.margin) ** 2)}"

    def judged(self, margin: float) -> str:
        """A word or two from the interval: does the loss stay within a margin? And why, in brackets.

        Worse is only what neither rounding alone nor the number of tasks explains.
        """
        word, lost = "inconclusive", self.loss is not None and self.loss[0] > margin
        if lost and self.within_noise:
            return f"{word} (rounding alone moves it by {self.noise:.3g})"
        if lost and (self.p_holm is None or self.p_holm < statistics.ALPHA):
            word = "worse"
        elif self.withheld:
            return self.withheld
        elif self.loss and self.loss[1] <= margin:
            word = "non-inferior"
        return f"{word} (margin {margin:g} {self.margin_unit})"

    def metrics(self, key: str = "") -> Metrics:
        """The keys of results.json that say what the row says; `key` is the metric's there."""
        stem = f"{self.task}/{key}_" if key else f"{self.task}/"
        end = "_pct" if self.unit == PERCENT else ""
        low, high = self.interval or (None, None)
        told = {
            f"{stem}float": self.float_value,
            f"{stem}quant": self.quant_value,
            f"{self.task}/delta_pct": self.difference if end else None,
            f"{self.task}/ci_low": low,
            f"{self.task}/ci_high": high,
            f"{self.task}/p_value": self.p_value,
            f"{self.task}/detectable{end}": self.detectable,
            f"{self.task}/noise{end}": self.noise,
            f"{self.task}/verdict": self.verdict,
            f"{self.task}/decides": self.decides or None,
            f"{self.task}/signature": self.signature,
        }
        return {key: value for key, value in told.items() if value is not None}


@dataclass(frozen=True)
class Report:
    """The comparison of two measurements of one task."""

    metrics: Metrics
    scores: list[Score]
    samples: list[dict[str, str]] = field(default_factory=list)  # all items: input, reference, float, quantized

    def told(self) -> Report:
        """The same, its metrics saying of p and verdict what its rows do."""
        rows = [row for row in self.scores if row.verdict]
        verdicts: Metrics = {f"{row.task}/verdict": row.verdict for row in rows}
        corrected: Metrics = {f"{row.task}/p_holm": row.p_holm for row in rows if row.p_holm is not None}
        return replace(self, metrics=self.metrics | verdicts | corrected)


def corrected(reports: Mapping[str, Report]) -> dict[str, Report]:
    """The reports with p-values corrected for each other: of several tasks one is below 0.05 by chance soon enough."""
    told = [
        (score.task, score.p_value)
        for report in reports.values()
        for score in report.scores
        if score.verdict and score.p_value is not None
    ]
    by_task = dict(zip([task for task, _ in told], statistics.holm([p_value for _, p_value in told])))
    return {
        name: replace(report, scores=[_read_together(row, by_task) for row in report.scores]).told()
        for name, report in reports.items()
    }


def _read_together(row: Score, p_holm: Mapping[str, float]) -> Score:
    """The row with its corrected p-value, and the verdict that this one leaves."""
    if (margin := row.margin) is None:
        return row
    row = replace(row, p_holm=p_holm.get(row.task))
    return replace(row, verdict=row.judged(margin))


def scored(
    task: str,
    name: str,
    values: tuple[float, float],
    intervals: tuple[Interval | None, Interval | None],
    change: Difference,
    *,
    higher_is_better: bool = True,
    unit: str = "",
    margin: Margin | None = None,
    items: int = 0,
    floor: str = "",
    signature: str = "",
) -> Score:
    """The row of a score, (float, quantized) twice, and of its difference, in its own unit or in percent.

    `margin` gives it a verdict, unless `floor` says why the float model's score is one from which little can be lost.
    """
    said = not change.doubt
    row = Score(
        task, name, *values, *intervals, change.value, (change.low, change.high) if said else None,
        change.p_value if said else None, change.detectable if said else None, unit, higher_is_better,
        signature=signature,
    )  # fmt: skip
    if margin is None:
        return row
    withheld = f"inconclusive ({floor})" if floor else "" if said else f"too few to say ({change.doubt})"
    row = replace(row, margin=margin.value, margin_unit=margin.unit, margin_scale=margin.scale)
    row = replace(row, items=items, withheld=withheld)
    return replace(row, verdict=row.judged(margin.value))


def paired(
    task: str,
    name: str,
    before: Values,
    after: Values,
    *,
    margin: Margin | None = None,
    floor: str = "",
    higher_is_better: bool = True,
    signature: str = "",
    clusters: Clusters | None = None,
    reach: Reach = (0.0, 0.0),
) -> Score:
    """The row of a score that is a mean over items: [n], [n], the float and the quantized model on the same items.

    Items of one cluster [n] are alike. `reach`: see `statistics.mean`.
    """
    own, other = (statistics.clustered_mean(side, clusters).interval for side in (before, after))
    return scored(
        task,
        name,
        (float(before.mean()), float(after.mean())),
        (own, other),
        statistics.paired_difference(before, after, clusters, reach),
        higher_is_better=higher_is_better,
        margin=margin,
        items=statistics.observations(len(before), clusters),
        floor=floor,
        signature=signature,
    )
