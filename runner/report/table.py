"""The tables of a run on the console, in report.md and in report.html: verdicts, sizes, other score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from slimrun.evaluation.comparison import Score


@dataclass(frozen=True)
class Size:
    """A size that tables show, by its key in results.json; known without error, so it has no interval."""

    label: str
    key: str
    form: str
    unit: float = 1

    def of(self, results: Mapping[str, Any]) -> float | None:
        """The size in a run's results; None when they lack it."""
        value = results.get(self.key)
        return None if value is None else value / self.unit

    def shown(self, results: Mapping[str, Any]) -> str:
        """The size as text, "" when the results lack it."""
        value = self.of(results)
        return "" if value is None else self.form.format(value)


SIZES = (
    Size("bits per weight", "size/bits_per_weight", "{:.3f}"),
    Size("bits per parameter, whole model", "size/bits_per_parameter", "{:.3f}"),
    Size("share of weights covered", "size/covered_share", "{:.1%}"),
    Size("compression ratio", "compress/ratio", "{:.3f}"),
    Size("artifact, MB", "size/artifact_bytes", "{:.1f}", 1e6),
)
SIDES = ("float", "quantized", "difference")
HOW_TO_READ = (
    "A difference is quantized minus float on the same items, with its 95 % interval; detectable is the smallest one "
    "that these items would have shown, noise how far the score moves when nothing but rounding does: a difference "
    "within it is no finding. The margin is what may be lost; p is corrected for the run's other tasks (Holm)."
)


class Table(NamedTuple):
    """What a table says, wherever it is shown."""

    columns: list[str]
    rows: list[list[str]]


def verdicts(scores: Sequence[Score], sides: Sequence[str] = SIDES) -> Table:
    """The judged scores, one a task; `sides` are what the two models and their difference are called."""
    columns = ["task", *sides, "95 % interval", "p (Holm)", "detectable", "noise", "margin", "verdict"]
    rows = [
        [
            *_paired(score),
            _probability(score.p_holm),
            _number(score, score.detectable, ".3g"),
            _number(score, score.noise, ".2g"),
            _number(score, None if score.margin is None else score.margin / score.margin_scale, "g"),
            score.word,
        ]
        for score in scores
        if score.verdict
    ]
    return Table(columns, rows)


def beside(scores: Sequence[Score], sides: Sequence[str] = SIDES) -> Table:
    """The scores without a verdict."""
    columns = ["other score", *sides, "95 % interval", "p", "noise"]
    others = [score for score in scores if not score.verdict]
    rows = [[*_paired(score), _probability(score.p_value), _number(score, score.noise, ".2g")] for score in others]
    return Table(columns, rows)


def sizes(results: Mapping[str, Any]) -> Table:
    """The sizes that the results have."""
    return Table(["size", "value"], [[size.label, size.shown(results)] for size in SIZES if size.key in results])


def overall(scores: Sequence[Score]) -> str:
    """One line over all verdicts, the worst first, with the reason of those that the items do not bear."""
    told: dict[str, list[str]] = {word: [] for word in ("worse", "too few to say", "inconclusive", "non-inferior")}
    for score in scores:
        if score.verdict:
            why = score.verdict.removeprefix(score.word) if score.verdict == score.withheld else ""
            told[score.word].append(score.task + why)
    said = "; ".join(f"{word} in {', '.join(tasks)}" for word, tasks in told.items() if tasks)
    return f"overall: {said or 'nothing was judged'}"


def _paired(score: Score) -> list[str]:
    """Name, both values, their difference and its interval."""
    low, high = score.interval or (None, None)
    return [
        score.label,
        f"{score.float_value:.4g}",
        f"{score.quant_value:.4g}",
        _number(score, score.difference, "+.4g") + (" (noise)" if score.within_noise else ""),
        "" if low is None else f"{low:+.4g} to {_number(score, high, '+.4g')}",
    ]


def _number(score: Score, value: float | None, form: str) -> str:
    """A number in the unit of the difference, "" where there is none."""
    return "" if value is None else f"{value:{form}} {score.unit}".rstrip()


def _probability(p_value: float | None) -> str:
    """A p-value as text, "" where there is none; no p is zero."""
    return "" if p_value is None else f"{p_value:.4f}" if p_value >= 0.0001 else "<0.0001"
