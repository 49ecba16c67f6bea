"""Perplexity, and how far the quantized model's predictions are from the float model's."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from slimrun.evaluation import statistics
from slimrun.evaluation.base import FloatArray, IntArray, Outputs
from slimrun.evaluation.comparison import PERCENT, Margin, Metrics, Score, paired, scored
from slimrun.evaluation.statistics import Clusters

HEAD_ROWS = 128  # rows of one call of the output head: enough for a fast product, 25 MB at 49152 tokens
CACHE_ROWS = 4  # rows whose log-probabilities stay in the processor's cache while several passes read them

MOST_NATS = 700.0  # that a loss is told by: exp of more is no float
KL_SHARES = (90, 95, 99, 99.9)  # percentiles
CHANGE_SHARES = (1, 5, 25, 50, 75, 95, 99)

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


def kept_of(targets: IntArray, hidden: FloatArray, head: Head, head_rows: FloatArray | None) -> Outputs:
    """What is kept of the float model's predictions of targets [N] from states [N, H]: log_probs and hidden.

    Where the logits are the states' product with `head_rows` [V, H], also what `divergence` takes instead of running
    the float head again for each quantized model: top [N], the most likely token; negentropy [N], sum p log p; and
    pull [N, H], the mean of the rows by their probability less the target's row.
    """
    if head_rows is None:
        return {"log_probs": token_log_probs(targets, hidden, head), "hidden": hidden}
    kept: dict[str, list[np.ndarray]] = {"log_probs": [], "top": [], "negentropy": [], "pull": []}
    for start in range(0, len(targets), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        log_probs, wanted = head(hidden[rows]), targets[rows]
        probabilities = np.exp(log_probs)
        total = probabilities.sum(axis=1)  # 1 but for rounding, which logits of 20 would make twenty times larger
        kept["log_probs"].append(log_probs[np.arange(len(wanted)), wanted])
        kept["top"].append(log_probs.argmax(axis=1))
        kept["negentropy"].append(np.einsum("nv,nv->n", probabilities, log_probs) / total)
        kept["pull"].append(probabilities @ head_rows / total[:, None] - head_rows[wanted])
    return {"hidden": hidden, **{name: np.concatenate(parts) for name, parts in kept.items()}}


def divergence(
    targets: IntArray, hidden: FloatArray, head: Head, reference: Outputs, float_head: Head, *, same_head: bool
) -> Outputs:
    """Compare a model with the float model token by token, exactly over the vocabulary.

    targets [N], hidden states [N, H] and the head of the quantized model, and what `kept_of` gave of the float model ->
    log_probs [N] of the targets under the quantized model, kl [N], KL(float || quantized) in nats, agree [N], whether
    both have the same most likely token. A block of rows at a time: full log-probabilities of 16k tokens would be 3 GB.

    With the same head rows w on both sides, states h of the quantized model and target t, all that KL needs of the
    float model's p is sum p log p and the vector g = sum_v p_v w_v - w_t, which is also its loss's gradient:
    KL = sum p log p - log q_t - g h.
    """
    if not same_head or "pull" not in reference:
        return _divergence_of_heads(targets, hidden, head, reference["hidden"], float_head)
    scores, top = np.empty(len(targets), np.float32), np.empty(len(targets), np.int64)
    for start in range(0, len(targets), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        log_probs = head(hidden[rows])
        scores[rows] = np.take_along_axis(log_probs, targets[rows, None], axis=1)[:, 0]
        top[rows] = log_probs.argmax(axis=1)
    pulled = np.einsum("nh,nh->n", reference["pull"], hidden, dtype=np.float64)
    kl = reference["negentropy"] - scores.astype(np.float64) - pulled
    kl[(hidden == reference["hidden"]).all(axis=1)] = 0  # of the same states, where rounding leaves 1e-6 of two sums
    # Gibbs' inequality holds for real numbers; float32 may miss it in the last place
    return {"log_probs": scores, "kl": np.maximum(kl, 0).astype(np.float32), "agree": top == reference["top"]}


def _divergence_of_heads(
    targets: IntArray, hidden: FloatArray, head: Head, float_hidden: FloatArray, float_head: Head
) -> Outputs:
    """The same from both models' states and heads, each run on every row."""
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
            kl[out] = np.maximum(np.einsum("nv,nv->n", np.exp(p), p - q), 0)
    return {"log_probs": scores, "kl": kl, "agree": agree}


def perplexities(
    task: str,
    name: str,
    before: npt.NDArray[Any],
    after: npt.NDArray[Any],
    *,
    margin_pct: float | None = None,
    chance: float = math.inf,
    floor: str = "",
    noise: float | None = None,
    signature: str = "",
    clusters: Clusters | None = None,
) -> Score:
    """The row of both perplexities from log-probabilities [n, ...], paired by item; the difference in percent.

    Items of one cluster [n] are alike.

    `margin_pct` gives it a verdict, unless the float model's perplexity is not below half of `chance`: models that
    guess differ in nothing that a perplexity measures, and may be a little off chance; `floor` names another reason.
    `noise`: by how many nats rounding alone moves the loss.
    """
    sides = (before, after)
    # items are equally long, so the mean over items is the mean over tokens
    losses = [-side.mean(axis=tuple(range(1, side.ndim)), dtype=np.float64) for side in sides]
    change = statistics.paired_difference(losses[0], losses[1], clusters)
    percent = change.mapped(_percent)
    own = [statistics.clustered_mean(loss, clusters) for loss in losses]
    intervals = [side.mapped(lambda nats: math.exp(min(nats, MOST_NATS))).interval for side in own]
    if not floor and intervals[0] and intervals[0][1] >= chance / 2:
        floor = f"baseline perplexity {perplexity(before):.4g} is not below {chance / 2:g}, half of chance"
    row = scored(
        task,
        name,
        (perplexity(before), perplexity(after)),
        (intervals[0], intervals[1]),
        percent,
        higher_is_better=False,
        unit=PERCENT,
        margin=None if margin_pct is None else Margin(margin_pct, PERCENT),
        items=statistics.observations(len(before), clusters),
        floor=floor,
        signature=signature,
    )
    return row if noise is None else replace(row, noise=_percent(noise))


def divergences(task: str, before: Outputs, after: Outputs, clusters: Clusters | None) -> list[Score]:
    """The rows of what `divergence` gave, kl and agree [W, T], paired by window; a float model agrees with itself."""
    kl = [_by_window(side.get("kl", np.zeros_like(after["kl"]))) for side in (before, after)]
    agree = [_by_window(side.get("agree", np.ones_like(after["agree"]))) for side in (before, after)]
    return [
        paired(task, "KL to float, nats", *kl, higher_is_better=False, clusters=clusters),
        paired(task, "top-1 agreement", *agree, clusters=clusters),
    ]


def token_metrics(group: str, before: Outputs, after: Outputs, clusters: Clusters | None) -> Metrics:
    """The keys of results.json that llama.cpp prints of two models: KL, same top token, probability of the right token.

    Of log_probs, kl and agree [W, T]; errors are those of means over windows, of clusters where they are alike.
    """
    kl = after["kl"]
    change = np.exp(after["log_probs"], dtype=np.float64) - np.exp(before["log_probs"], dtype=np.float64)
    ratio = before["log_probs"].astype(np.float64) - after["log_probs"]
    means = {"kl": kl, "top1_agreement": after["agree"], "log_ppl_ratio": ratio, "right_token": change}
    errors = {
        f"{group}/{name}_error": statistics.standard_error(_by_window(values), clusters)
        for name, values in means.items()
    }
    told = {
        "kl_mean": float(kl.mean(dtype=np.float64)),
        "kl_median": float(np.median(kl)),
        **{f"kl_p{_digits(share)}": float(np.quantile(kl, share / 100)) for share in KL_SHARES},
        "kl_max": float(kl.max()),
        "top1_agreement": float(after["agree"].mean()),
        "log_ppl_ratio": float(ratio.mean()),
        "right_token_mean": float(change.mean()),
        "right_token_rms": float(np.sqrt((change**2).mean())),
        **{f"right_token_p{_digits(share)}": float(np.quantile(change, share / 100)) for share in CHANGE_SHARES},
    }
    metrics: Metrics = {f"{group}/{key}": value for key, value in told.items()}
    return metrics | {key: value for key, value in errors.items() if value is not None}


def _digits(share: float) -> str:
    return f"{share:g}".replace(".", "")


def _percent(nats: float) -> float:
    """By how much a perplexity grows when its loss does by so many nats."""
    return 100 * math.expm1(min(nats, MOST_NATS))


def _by_window(tokens: npt.NDArray[Any]) -> statistics.Values:
    return np.asarray(tokens.mean(axis=1, dtype=np.float64))
