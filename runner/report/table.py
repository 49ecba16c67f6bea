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
        """It as text, "" when the results lack it."""
        value = self.of(results)
        return "" if value is None else self.form.format(value)


SIZES = (
    Size("bits per weight", "size/bits_per_weight", "{:.3f}"),
    Size("share of weights covered", "size/covered_share", "{:.1%}"),
    Size("compression ratio", "compress/ratio", "{:.3f}"),
    Size("artifact, MB", "size/artifact_bytes", "{:.1f}", 1e6),
)
COLUMNS = ["difference", "95 % interval", "p", "verdict"]  # after the score's name and its two values


def cells(score: Score) -> list[str]:
    """Name, both values, and what the columns say."""
    unit = f" {score.unit}" if score.unit else ""
    return [
        score.label,
        f"{score.float_value:.4g}",
        f"{score.quant_value:.4g}",
        f"{score.difference:+.4g}{unit}",
        f"{score.low:+.4g} to {score.high:+.4g}{unit}",
        f"{score.p_value:.4f}",
        score.verdict,
    ]
