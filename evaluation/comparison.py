"""One row a score: the float model beside the quantized one on the same items, and how sure the difference is.

Tables, pictures, reports, sweeps, `slimrun-compare` and tracking read these rows and nothing else, so whatever a task
measures is in all of them once it gives a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from slimrun.evaluation import statistics
from slimrun.evaluation.statistics import Difference, Values

Interval = tuple[float, float]  # 95 %
Metrics = dict[str, float | str]  # "<task>/<key>" -> what results.json says

PERCENT = "%"
SAMPLES = 5  # examples of a report that a person reads


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
    float_interval: Interval
    quant_interval: Interval
    difference: float  # quantized minus float
    low: float
    high: float  # both ends of the paired difference's interval
    p_value: float
    detectable: float  # the smallest difference that these items would have shown
    unit: str = ""  # of the last five but p: "%" is percent of the float value, "" the score's own
    higher_is_better: bool = True
    verdict: str = ""
    signature: str = ""  # what the score depends on; rows of equal ones were measured alike

    @property
    def label(self) -> str:
        """What tables and pictures call it."""
        return self.name if self.name == self.task else f"{self.task}: {self.name}"

    @property
    def word(self) -> str:
        """The verdict without its margin."""
        return self.verdict.partition(" (")[0]

    @property
    def range(self) -> Interval:
        """The float value moved by both ends of the difference's interval: where the quantized value lies, paired."""
        if self.unit == PERCENT:
            return self.float_value * (1 + self.low / 100), self.float_value * (1 + self.high / 100)
        return self.float_value + self.low, self.float_value + self.high

    def metrics(self, key: str = "") -> Metrics:
        """The keys of results.json that say what the row says; `key` is the metric's there."""
        stem = f"{self.task}/{key}_" if key else f"{self.task}/"
        end = "_pct" if self.unit == PERCENT else ""
        return {
            f"{stem}float": self.float_value,
            f"{stem}quant": self.quant_value,
            **({f"{self.task}/delta_pct": self.difference} if end else {}),
            f"{self.task}/ci_low": self.low,
            f"{self.task}/ci_high": self.high,
            f"{self.task}/p_value": self.p_value,
            f"{self.task}/detectable{end}": self.detectable,
            f"{self.task}/verdict": self.verdict,
            f"{self.task}/signature": self.signature,
        }


@dataclass(frozen=True)
class Report:
    """The comparison of two measurements of one task."""

    metrics: Metrics
    scores: list[Score]
    samples: list[dict[str, str]] = field(default_factory=list)  # input, reference, float, quantized


def scored(
    task: str,
    name: str,
    values: tuple[float, float],
    intervals: tuple[Interval, Interval],
    change: Difference,
    *,
    higher_is_better: bool = True,
    verdict: str = "",
    signature: str = "",
) -> Score:
    """The row of a score, (float, quantized) twice, whose difference is in its own unit."""
    return Score(
        task, name, *values, *intervals, change.value, change.low, change.high, change.p_value, change.detectable,
        higher_is_better=higher_is_better, verdict=verdict, signature=signature,
    )  # fmt: skip


def paired(
    task: str,
    name: str,
    before: Values,
    after: Values,
    *,
    margin: float | None = None,
    higher_is_better: bool = True,
    signature: str = "",
) -> Score:
    """The row of a score that is a mean over items: [n], [n], the float and the quantized model on the same items.

    `margin`, in the score's own unit, gives it a verdict.
    """
    change = statistics.paired_difference(before, after)
    loss = (-change.high, -change.low) if higher_is_better else (change.low, change.high)
    return scored(
        task,
        name,
        (float(before.mean()), float(after.mean())),
        (statistics.mean_interval(before), statistics.mean_interval(after)),
        change,
        higher_is_better=higher_is_better,
        verdict="" if margin is None else verdict(*loss, margin, name),
        signature=signature,
    )


def verdict(loss_low: float, loss_high: float, margin: float, unit: str) -> str:
    """One word on a loss (positive is worse) from its interval: does it stay within the margin?"""
    if loss_high <= margin:
        word = "non-inferior"
    elif loss_low > margin:
        word = "worse"
    else:
        word = "inconclusive"
    return f"{word} (margin {margin:g} {unit})"
