"""Where on a dial to try next: the smallest model whose loss stays within a margin, in a handful of tries.

The dial goes from 0, the smallest model, to 1, the largest. The logarithm of what is lost falls about linearly along
it, so a line through the nearest tries tells where it crosses the margin. A try is made a little beside the crossing,
on the side where less is known, so that what holds and what fails close in on it together. Where two tries in a row
end on the same side, the interval between holding and failing is halved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

RESOLUTION = 0.01  # of the dial: a step of 0.05 bits between 2 and 7
START = 0.3  # 3.5 bits between 2 and 7
FALL = 5.0  # of the loss's logarithm along the dial before anything is measured: by 0.6 in half a bit, as rdoq loses
FALLS = (0.5, 20.0)  # what two tries near each other may say of it
LEAST = 0.02  # of the margin: a loss below that says nothing of how fast it falls


@dataclass(frozen=True)
class Tried:
    """A place on the dial, what was surely not exceeded there by the loss, as a share of the margin, and the verdict.

    The loss is infinite where no interval holds.
    """

    place: float
    loss: float
    holds: bool


def next_place(tried: Sequence[Tried], tries: int, step: float = 0.0) -> float | None:
    """Where to try next; None when the smallest that holds is known, when nothing holds, or after so many `tries`.

    Between two places of a dial of whole numbers lies `step`.
    """
    if not tried:
        return round(START / step) * step if step else START
    held = min((one.place for one in tried if one.holds), default=None)
    failed = max((one.place for one in tried if not one.holds and (held is None or one.place < held)), default=None)
    if len(tried) >= tries or held == 0 or failed == 1:
        return None
    low, high = (0.0 if failed is None else failed), (1.0 if held is None else held)
    closed_in = held is not None and failed is not None
    if closed_in and high - low <= max(RESOLUTION, 1.001 * step):
        return None
    if held is None and len(tried) == tries - 1:
        return 1.0
    crossing = _crossing(tried)
    if crossing is None or (closed_in and len({one.holds for one in tried[-2:]}) == 1):  # the line misleads
        place = (low + high) / 2
    else:
        # the first that holds is looked for ever further beyond the crossing
        beside = RESOLUTION / 2 * (2 ** (len(tried) - 1) if held is None else 1)
        above = held is None or (closed_in and high - crossing > crossing - low)
        place = crossing + beside if above else crossing - beside
    if step:
        place = round(place / step) * step
    least = low if failed is None else low + (step or RESOLUTION / 2)
    most = high if held is None else high - (step or RESOLUTION / 2)
    return min(most, max(least, place))


def _crossing(tried: Sequence[Tried]) -> float | None:
    """Where the loss is as large as the margin, by the two tries nearest to that; None when none has an interval."""
    known = sorted((abs(_miss(one)), one.place, _miss(one)) for one in tried if math.isfinite(one.loss))
    if not known:
        return None
    (_, place, miss), *others = known
    fall = FALL
    if others:
        _, other, other_miss = others[0]
        fall = min(FALLS[1], max(FALLS[0], (miss - other_miss) / (other - place)))
    return place + miss / fall


def _miss(one: Tried) -> float:
    return math.log(max(one.loss, LEAST))
