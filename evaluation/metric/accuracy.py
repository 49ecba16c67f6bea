"""Accuracy of two models on the same items, and which answers flipped."""

from typing import Any

import numpy as np
import numpy.typing as npt

from slimrun.evaluation import statistics
from slimrun.evaluation.comparison import Margin, Metrics, Score, paired, scored
from slimrun.evaluation.statistics import Values

Hits = npt.NDArray[np.bool_]  # which items were answered right

POINTS = "points of accuracy"


def accuracy(
    task: str, was: Hits, now: Hits, *, margin_points: float | None, floor: str = "", signature: str = ""
) -> tuple[Score, Metrics]:
    """The row and its keys of results.json: [n], [n], the float and the quantized model on the same items.

    `margin_points` gives it the verdict; without it stands beside a row that has one.
    """
    lost, gained, items = int((was & ~now).sum()), int((~was & now).sum()), len(was)
    intervals = [statistics.proportion_interval(int(hits.sum()), items) for hits in (was, now)]
    row = scored(
        task,
        "accuracy",
        (float(was.mean()), float(now.mean())),
        (intervals[0], intervals[1]),
        statistics.proportion_difference(lost, gained, items),
        margin=None if margin_points is None else Margin(margin_points, POINTS, 100),
        items=items,
        floor=floor,
        signature=signature,
    )
    flips: dict[str, Any] = {
        f"{task}/flips": (lost + gained) / items,
        f"{task}/flips_lost": lost / items,
        f"{task}/flips_gained": gained / items,
    }
    if margin_points is not None:
        return row, row.metrics("accuracy") | flips
    beside = {
        f"{task}/accuracy_float": row.float_value,
        f"{task}/accuracy_quant": row.quant_value,
        f"{task}/accuracy_p_value": row.p_value,
    }
    return row, {key: value for key, value in beside.items() if value is not None} | flips


def answer_probability(
    task: str, was: Values, now: Values, chance: Values, *, right: Hits, margin_points: float, signature: str = ""
) -> Score:
    """The row with the verdict of how probable either model finds the right option among an item's options: [n], [n].

    It is the accuracy of a model that draws its answers, so its margin is one of accuracy, and it moves long before an
    answer flips. `chance` [n] is what a guess has; where so skewed a sample does not say whether the float model has
    more, its answers that are `right` [n] do.
    """
    above = statistics.mean(was - chance)
    floor = at_chance(right, float(chance.mean())) if above.doubt else ""
    if not above.doubt and above.low <= 0:
        floor = f"baseline {was.mean():.2f} is not above chance, {chance.mean():.2f}"
    margin = Margin(margin_points, POINTS, 100)
    return paired(task, "probability of the answer", was, now, margin=margin, floor=floor, signature=signature)


def at_chance(was: Hits, chance: float) -> str:
    """Why the float model's answers say nothing; "" when they are better than guesses, or too few to tell."""
    above = _surely_above(was, chance)
    return "" if above else f"baseline accuracy {was.mean():.2f} is not above chance, {chance:.2f}"


def within_margin(was: Hits, margin_points: float) -> str:
    """Why the float model's answers say nothing where none is right by chance: too few are, for a margin to be lost."""
    above = _surely_above(was, margin_points / 100)
    return "" if above else f"baseline accuracy {was.mean():.2f} may be within the margin"


def _surely_above(was: Hits, share: float) -> bool:
    """Whether more than this share of answers is right; of too few something else is said."""
    low, _ = statistics.proportion_interval(int(was.sum()), len(was))
    return low > share or len(was) < statistics.LEAST_ITEMS
