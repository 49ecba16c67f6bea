"""The pictures of a run and of a sweep."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.text import Annotation, Text
from matplotlib.ticker import ScalarFormatter
from matplotlib.transforms import Bbox

from slimrun.evaluation.comparison import Score
from slimrun.runner.report.pareto import Panel

FLOAT_COLOR, QUANT_COLOR = "#4c72b0", "#dd8452"
WIDE_RANGE = 10.0  # scores further apart than this factor are drawn on a logarithmic axis
# where a label may stand, in points from its mark: nearest first
LABEL_PLACES = [
    (side * across, dy) for across in (8, 20, 40) for dy in (0, 8, -8, 18, -18, 30, -30, 45, -45) for side in (1, -1)
]


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


def scores(path: Path, shown: Sequence[Score]) -> None:
    """What each judged task lost, with its 95 % interval, counted in its margin: zero and the margin are lines.

    A margin of 0 counts nothing: there the loss is in the margin's unit, and the margin's line is at zero.
    """
    judged = [score for score in shown if score.verdict]
    figure, axis = plt.subplots(figsize=(9, 1.4 + 0.55 * max(1, len(judged))), layout="constrained")
    for place, score in enumerate(reversed(judged)):
        margin, sign = score.margin or 1.0, -1 if score.higher_is_better else 1
        axis.vlines(1 if score.margin else 0, place - 0.5, place + 0.5, colors="black", ls="--", lw=1)
        if score.loss is not None:
            lost, ends = sign * score.margin_scale * score.difference / margin, [end / margin for end in score.loss]
            error = [[max(0.0, lost - ends[0])], [max(0.0, ends[1] - lost)]]
            axis.errorbar(lost, place, xerr=error, fmt="o", ms=6, color=QUANT_COLOR, ecolor=QUANT_COLOR, capsize=4)
        told = f"{score.float_value:.4g} to {score.quant_value:.4g}: {score.word}"
        axis.annotate(told, (0.01, place + 0.22), xycoords=("axes fraction", "data"), fontsize=8, color="0.3")
    names = [
        f"{score.label}\nmargin {score.margin:g}{'' if score.margin else ', loss in'} {score.margin_unit}"
        for score in reversed(judged)
    ]
    axis.set_yticks(range(len(judged)), names, fontsize=8)
    axis.set_ylim(-0.5, max(1, len(judged)) - 0.5)
    axis.set_xscale("symlog", linthresh=2)
    axis.axvline(0, color=FLOAT_COLOR, lw=1, label="the float model")
    axis.plot([], [], color="black", ls="--", lw=1, label="the margin")
    axis.set_xlim(min(-2, axis.get_xlim()[0]), max(3, axis.get_xlim()[1]))
    axis.set_xlabel("loss, in margins; an interval left of the margin is non-inferior, right of it worse")
    axis.xaxis.set_major_formatter(ScalarFormatter())
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def pareto(path: Path, panels: Sequence[Panel]) -> None:
    """Score against size, one panel a score: intervals as bars, the front as a line, labels on points."""
    columns = min(2, max(1, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    size = (9 if columns == 1 else 7.5 * columns, 5.5 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels):
        _pareto_panel(axis, panel)
    figure.suptitle("Score against size" if panels else "No job finished: nothing to draw")
    figure.draw_without_rendering()  # where points lie has to be known before labels are put beside them
    for axis, panel in zip(axes.flat, panels):
        _label_points(axis, panel)
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def _error(value: float, low: float | None, high: float | None) -> list[list[float]]:
    """How far the bars of an interval reach below and above a value."""
    return [[0.0 if low is None else max(0.0, value - low)], [0.0 if high is None else max(0.0, high - value)]]


def _pareto_panel(axis: plt.Axes, panel: Panel) -> None:
    for point in panel.points:
        color = QUANT_COLOR if point.on_front else "0.6"
        error = _error(point.score, point.low, point.high)
        axis.errorbar(point.bits, point.score, yerr=error, fmt="o", ms=5, color=color, ecolor=color, capsize=3, lw=1)
    front = panel.front
    # between two jobs of the front only what both reach is known: steps, not a straight line
    steps = "steps-post" if len(front) > 1 else "default"
    axis.plot([p.bits for p in front], [p.score for p in front], "-", drawstyle=steps, color=QUANT_COLOR, lw=1.2,
              label="front")  # fmt: skip
    axis.axhline(panel.float_score, color=FLOAT_COLOR, ls="--", lw=1, label=f"float {panel.float_score:.4g}")
    scores = [point.score for point in panel.points] + [panel.float_score]
    if min(scores) > 0 and max(scores) / min(scores) > WIDE_RANGE:
        axis.set_yscale("log")
    axis.margins(x=0.12, y=0.12)
    counted = {
        "bits_per_weight": f"bits per weight, everything counted ({panel.weights / 1e6:.4g} M weights)",
        "bits_per_parameter": "bits per parameter of the whole weight file",
    }
    axis.set_xlabel(counted[panel.axis])
    axis.set_ylabel(f"{panel.title} ({'higher' if panel.higher_is_better else 'lower'} is better)")
    axis.legend(fontsize=8)


def _label_points(axis: plt.Axes, panel: Panel) -> None:
    """A label beside each point where it covers least, with a leader where that is not next to it."""
    window = axis.get_window_extent()
    covered = _drawn(axis, panel)
    for point in sorted(panel.points, key=lambda point: not point.on_front):
        color = "black" if point.on_front else "0.4"
        note = axis.annotate(point.label or f"job {point.job}", (point.bits, point.score), xytext=(0, 0),
                             textcoords="offset points", va="center", fontsize=7, color=color,
                             arrowprops={"arrowstyle": "-", "color": "0.7", "lw": 0.5, "shrinkB": 3})  # fmt: skip
        note.set_in_layout(False)

        def move(place: tuple[float, float], note: Annotation = note) -> Bbox:
            note.set_position(place)
            note.set_horizontalalignment("left" if place[0] > 0 else "right")
            note.update_positions(axis.figure.canvas.get_renderer())
            return Text.get_window_extent(note)

        def cost(place: tuple[float, float]) -> float:
            box = move(place)
            outside = not (window.containsx(box.x0) and window.containsx(box.x1) and window.containsy(box.y0)
                           and window.containsy(box.y1))  # fmt: skip
            return 4 * outside + sum(box.overlaps(other) for other in covered)

        best = min(LABEL_PLACES, key=cost)  # of equal ones the nearest
        covered.append(move(best))
        note.arrow_patch.set_visible(abs(best[1]) > 10)


def _drawn(axis: plt.Axes, panel: Panel) -> list[Bbox]:
    """What a label should not cover, in pixels: points with their intervals, the steps of the front, the legend."""

    def pixels(x: float, y: float) -> tuple[float, float]:
        return tuple(axis.transData.transform((x, y)))

    level = pixels(0, panel.float_score)[1]
    boxes = [axis.get_legend().get_window_extent(), Bbox([(axis.bbox.x0, level), (axis.bbox.x1, level)]).padded(1)]
    for point in panel.points:
        ends = [point.score if end is None else end for end in (point.low, point.high)]
        boxes.append(Bbox([pixels(point.bits, end) for end in ends]).padded(4))
        boxes.append(Bbox([pixels(point.bits, point.score)] * 2).padded(6))
    for here, there in itertools.pairwise(panel.front):
        corner = pixels(there.bits, here.score)
        boxes += [Bbox([pixels(p.bits, p.score), corner]).padded(1) for p in (here, there)]
    return boxes


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
