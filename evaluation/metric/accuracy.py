"""Accuracy of two models on the same items, and which answers flipped."""

from typing import Any

import numpy as np
import numpy.typing as npt

from slimrun.evaluation import statistics
from slimrun.evaluation.comparison import Margin, Metrics, Score, scored

Hits = npt.NDArray[np.bool_]  # which items were answered right

POINTS = "points of accuracy"


def accuracy(
    task: str, was: Hits, now: Hits, *, margin_points: float, floor: str = "", signature: str = ""
) -> tuple[Score, Metrics]:
    """The row and its keys of results.json: [n], [n], the float and the quantized model on the same items."""
    lost, gained, items = int((was & ~now).sum()), int((~was & now).sum()), len(was)
    intervals = [statistics.proportion_interval(int(hits.sum()), items) for hits in (was, now)]
    row = scored(
        task,
        "accuracy",
        (float(was.mean()), float(now.mean())),
        (intervals[0], intervals[1]),
        statistics.proportion_difference(lost, gained, items),
        margin=Margin(margin_points, POINTS, 100),
        items=items,
        floor=floor,
        signature=signature,
    )
    flips: dict[str, Any] = {
        f"{task}/flips": (lost + gained) / items,
        f"{task}/flips_lost": lost / items,
        f"{task}/flips_gained": gained / items,
    }
    return row, row.metrics("accuracy") | flips


def at_chance(was: Hits, chance: float) -> str:
    """Why the float model's answers say nothing; "" when they are better than guesses."""
    low, _ = statistics.proportion_interval(int(was.sum()), len(was))
    return f"baseline accuracy {was.mean():.2f} is not above chance, {chance:.2f}" if low <= chance else ""
