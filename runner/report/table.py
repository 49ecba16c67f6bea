"""Rows of tables: the sizes of a run, and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
# after the score's name and its two values; p corrected for the run's other tasks where the score has a verdict
COLUMNS = ["difference", "95 % interval", "p", "p (Holm)", "detectable", "noise", "margin", "verdict"]


def cells(score: Score) -> list[str]:
    """Name, both values, and what the columns say."""
    unit = f" {score.unit}" if score.unit else ""
    low, high = score.interval or (None, None)
    return [
        score.label,
        f"{score.float_value:.4g}",
        f"{score.quant_value:.4g}",
        f"{score.difference:+.4g}{unit}{' (noise)' if score.within_noise else ''}",
        "" if low is None else f"{low:+.4g} to {high:+.4g}{unit}",
        _probability(score.p_value),
        _probability(score.p_holm),
        "" if score.detectable is None else f"{score.detectable:.3g}{unit}",
        "" if score.noise is None else f"{score.noise:.2g}{unit}",
        "" if score.margin is None else f"{score.margin:g} {score.margin_unit}",
        score.withheld if score.verdict == score.withheld else score.word,
    ]


def _probability(p_value: float | None) -> str:
    """A p-value as text, "" where there is none; no p is zero."""
    return "" if p_value is None else f"{p_value:.4f}" if p_value >= 0.0001 else "<0.0001"
