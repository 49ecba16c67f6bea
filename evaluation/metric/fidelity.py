"""Perplexity, and how far the quantized model's predictions are from the float model's."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from slimrun.evaluation import statistics
from slimrun.evaluation.base import FloatArray, IntArray, Outputs
from slimrun.evaluation.comparison import PERCENT, Margin, Score, paired, scored
from slimrun.evaluation.statistics import Values

HEAD_ROWS = 128  # rows of one call of the output head: enough for a fast product, 25 MB at 49152 tokens
CACHE_ROWS = 4  # rows whose log-probabilities stay in the processor's cache while several passes read them

Head = Callable[[FloatArray], FloatArray]


def perplexity(log_probs: npt.NDArray[Any]) -> float:
    """exp of the mean negative log-likelihood, per token, over all axes."""
    return float(np.exp(-np.mean(log_probs, dtype=np.float64)))


def token_log_probs(targets: IntArray, hidden: FloatArray, head: Head) -> FloatArray:
    """Log-probability of every target: [N], [N, H] -> [N]."""
    parts = []
    for start in range(0, len(targets), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        parts.append(np.take_along_axis(head(hidden[rows]), targets[rows, None], axis=1)[:, 0])
    return np.concatenate(parts)


def divergence(
    targets: IntArray, hidden: FloatArray, head: Head, float_hidden: FloatArray, float_head: Head
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Compare two models token by token, exactly over the vocabulary, one block of rows at a time.

    targets [N], hidden states [N, H] and output heads of the quantized and of the float model ->
    log-probability of the targets under the quantized model [N], KL(float || quantized) in nats [N], whether both
    models have the same most likely token [N]. Full log-probabilities of 16k tokens would be 3 GB a model.
    """
    count = len(targets)
    scores, kl = np.empty(count, np.float32), np.empty(count, np.float32)
    agree = np.empty(count, np.bool_)
    for start in range(0, count, HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        quant, reference = head(hidden[rows]), float_head(float_hidden[rows])
        scores[rows] = np.take_along_axis(quant, targets[rows, None], axis=1)[:, 0]
        for at in range(0, len(quant), CACHE_ROWS):
            q, p = quant[at : at + CACHE_ROWS], reference[at : at + CACHE_ROWS]
            out = slice(start + at, start + at + len(q))
            agree[out] = q.argmax(axis=1) == p.argmax(axis=1)
            # Gibbs' inequality holds for real numbers; float32 may miss it in the last place
            kl[out] = np.maximum(np.einsum("nv,nv->n", np.exp(p), p - q), 0)
    return scores, kl, agree


def perplexities(
    task: str,
    name: str,
    before: npt.NDArray[Any],
    after: npt.NDArray[Any],
    *,
    margin_pct: float | None = None,
    chance: float = math.inf,
    moves: Values | None = None,
    signature: str = "",
) -> Score:
    """The row of both perplexities from log-probabilities [n, ...], paired by item; the difference in percent.

    `margin_pct` gives it a verdict, unless the float model's perplexity is not below `chance`: models that guess differ
    in nothing that a perplexity measures. `moves`: by how many nats rounding alone moved the loss of a few items [k].
    """
    sides = (before, after)
    # items are equally long, so the mean over items is the mean over tokens
    losses = [-side.mean(axis=tuple(range(1, side.ndim)), dtype=np.float64) for side in sides]
    change = statistics.paired_difference(*losses)
    percent = change.mapped(lambda nats: 100 * math.expm1(nats))
    intervals = [statistics.mean(loss).mapped(math.exp).interval for loss in losses]
    floor = ""
    if intervals[0] and intervals[0][1] >= chance:
        floor = f"baseline perplexity {perplexity(before):.4g} is not below chance, {chance:g}"
    row = scored(
        task,
        name,
        (perplexity(before), perplexity(after)),
        (intervals[0], intervals[1]),
        percent,
        higher_is_better=False,
        unit=PERCENT,
        margin=None if margin_pct is None else Margin(margin_pct, PERCENT),
        items=len(before),
        floor=floor,
        signature=signature,
    )
    if moves is None:
        return row
    return replace(row, noise=100 * math.expm1(statistics.noise_of_mean(moves, len(before))))


def divergences(task: str, before: Outputs, after: Outputs) -> list[Score]:
    """The rows of what `divergence` gave, kl and agree [W, T], paired by window; a float model agrees with itself."""
    kl = [_by_window(side.get("kl", np.zeros_like(after["kl"]))) for side in (before, after)]
    agree = [_by_window(side.get("agree", np.ones_like(after["agree"]))) for side in (before, after)]
    return [
        paired(task, "KL to float, nats", kl[0], kl[1], higher_is_better=False),
        paired(task, "top-1 agreement", agree[0], agree[1]),
    ]


def _by_window(tokens: npt.NDArray[Any]) -> statistics.Values:
    return np.asarray(tokens.mean(axis=1, dtype=np.float64))
