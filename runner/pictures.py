"""The two pictures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from evaluation.base import Report, Score

FLOAT_COLOR, QUANT_COLOR = "#4c72b0", "#dd8452"


def layers(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Bits per weight (and the entropy below them) and weight error of every linear in module order, by its kind."""
    kinds: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        kinds.setdefault(str(row["name"]).rpartition(".")[2], []).append(index)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 6.5), sharex=True, layout="constrained")
    for number, (kind, indices) in enumerate(kinds.items()):
        color = f"C{number % 10}"
        for axis, key in ((top, "bits"), (bottom, "sqnr_db")):
            axis.plot(indices, [_number(rows[i][key]) for i in indices], ".-", ms=5, lw=0.6, color=color, label=kind)
    top.plot(range(len(rows)), [_number(row["entropy"]) for row in rows], "_", ms=3, color="black", label="entropy")
    top.set_ylabel("stored bits per weight")
    bottom.set_ylabel("weight signal to noise, dB")
    bottom.set_xlabel("linear layer, in module order")
    figure.legend(*top.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle("Size and error of each linear that the method covers")
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
