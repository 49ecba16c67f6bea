"""The two pictures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from evaluation.base import Report, Score

FLOAT_COLOR, QUANT_COLOR, ERROR_COLOR = "#4c72b0", "#dd8452", "#55a868"


def layers(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Bits per weight (with the entropy below) and weight error of every linear, in module order."""
    index = range(len(rows))
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 6.5), sharex=True, layout="constrained")
    top.bar(index, [_number(row["bits"]) for row in rows], width=1.0, color=QUANT_COLOR, label="stored")
    top.plot(index, [_number(row["entropy"]) for row in rows], ".", ms=4, color="black", label="order-0 entropy")
    top.set_ylabel("bits per weight")
    top.legend(loc="lower right")
    bottom.plot(index, [_number(row["sqnr_db"]) for row in rows], ".-", ms=4, lw=0.7, color=ERROR_COLOR)
    bottom.set_ylabel("weight signal to noise, dB")
    bottom.set_xlabel("linear layer, in module order")
    for position in range(0, len(rows), max(1, len(rows) // 8)):
        name = str(rows[position]["name"])
        bottom.annotate(name, (position, bottom.get_ylim()[0]), rotation=90, fontsize=6, va="bottom", color="gray")
    figure.suptitle("Size and error of each quantized linear")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def scores(path: Path, reports: Mapping[str, Report]) -> None:
    """Float against quantized, one panel a score, with 95 % intervals where the task gives them."""
    shown = [score for report in reports.values() for score in report.scores]
    columns = min(4, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.6 * columns, 2.8 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, score in zip(axes.flat, shown):
        _panel(axis, score)
    figure.suptitle("Float against quantized, 95 % intervals")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(axis: plt.Axes, score: Score) -> None:
    pairs = (
        ("float", score.float_value, score.float_ci, FLOAT_COLOR),
        ("quant", score.quant_value, score.quant_ci, QUANT_COLOR),
    )
    for label, value, interval, color in pairs:
        axis.bar(label, value, color=color, width=0.6)
        if interval is not None:
            error = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
            axis.errorbar(label, value, yerr=error, color="black", capsize=4, lw=1)
        axis.annotate(
            f"{value:.2f}",
            (label, value),
            ha="left",
            va="bottom",
            fontsize=8,
            xytext=(6, 1),
            textcoords="offset points",
        )
    axis.set_title(score.name, fontsize=9)
    axis.margins(y=0.15)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
