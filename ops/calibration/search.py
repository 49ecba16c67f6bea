"""The one-dimensional search for the level of rounding at which a model loses what it may."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch

log = logging.getLogger(__name__)

PASSES = 10  # of rounding, at most
KL_TOLERANCE = 0.01  # of the loss
JITTER = 0.003  # of the level's logarithm: nearer tries say nothing new
FAR = 0.1  # of the loss: a target missed by more is out of reach


def meet(loss_at: Callable[[float], float], level: float, target: float) -> None:
    """Leave the model rounded where it loses `target` nats a token; ValueError when it cannot.

    `loss_at` rounds it at a level, whatever it was rounded at before, and measures.
    """
    tried: list[tuple[float, float]] = []  # (log level, log of loss over target)
    for attempt in range(PASSES):
        loss = loss_at(level)
        log.info("rounding %d: level %.4g gives a KL of %.4f", attempt + 1, level, loss)
        miss = math.log(max(loss, 1e-9) / target)
        if abs(miss) <= KL_TOLERANCE:
            return
        tried.append((math.log(level), miss))
        level = math.exp(next_level(tried))
    nearest = min(tried, key=lambda point: abs(point[1]))
    if abs(nearest[1]) > FAR:
        raise ValueError(
            f"target_kl={target} is out of reach: the nearest loss found is {target * math.exp(nearest[1]):.4f}; "
            "allow another one, or keep more inputs float (fallback.max_share, activations=float)"
        )
    loss_at(math.exp(nearest[0]))


def next_level(tried: Sequence[tuple[float, float]]) -> float:
    """Where a line through the points (log level, log of loss over target) crosses zero, the nearest counting most.

    Roundings beside each other differ by chance too: a place that was tried already is left for one beside it.
    """
    levels, misses = torch.tensor(tried, dtype=torch.float64).unbind(1)
    weights = (misses.abs() + KL_TOLERANCE).reciprocal().square()
    weights /= weights.sum()
    level, miss = float(levels @ weights), float(misses @ weights)
    spread = float((levels - level).square() @ weights)
    slope = float(((levels - level) * (misses - miss)) @ weights) / spread if spread > 0 else 2.0
    place = level - max(-1.5, min(1.5, miss / max(1.0, min(4.0, slope))))  # the loss grows about as the step squared
    if float((levels - place).abs().min()) < JITTER:
        place += JITTER * len(tried) * (-1) ** len(tried)
    return place
