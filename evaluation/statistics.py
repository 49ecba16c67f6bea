"""How sure a difference between two models on the same items is.

Everything is paired: both models saw the same items, so the noise of the items cancels and only the noise of
the difference is left. An interval and its p-value are two readings of one test, so they never contradict each
other: the interval leaves zero out exactly when p < 0.05. Where a sample bears no statement the interval is
everything, p is 1, and `Difference.doubt` says why. Fixed seed, so a number can be had again.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy  # which loads `special` when it is first asked for: a command without verdicts need not wait

from slimrun.evaluation.text import words

Values = npt.NDArray[np.float64]
Clusters = npt.NDArray[np.int64]  # which items belong together
Reach = tuple[float, float]

SEED = 12345
RESAMPLES = 9_999  # one less than a round number: ranks over 10,000 are p-values
ALPHA, POWER = 0.05, 0.8
LEAST_ITEMS = 12  # below it half-unchanged differences, and skew that so few hide, take intervals off their level
LEAST_UNCHANGED = 20  # if none of n items differs, up to 3 / n of all items may: 15 % of them here
# skewness / sqrt(n) moves the error of each end of Student's interval by 0.085 times itself (Hall 1992, second order):
# from SKEWED on by 2 points, and beyond SKEW_LIMIT no interval meets its level: one or two items carry the difference
SKEWED, SKEW_LIMIT = 0.2, 0.6


@dataclass(frozen=True)
class Difference:
    """A paired difference (quantized minus float) with its 95 % interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float
    detectable: float  # the smallest true difference that such a sample shows, at 95 % confidence and 80 % power
    doubt: str = ""  # why this sample bears no statement; the interval is then everything

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends; None when the sample bears no statement."""
        return None if self.doubt else (self.low, self.high)

    def mapped(self, increasing: Callable[[float], float]) -> "Difference":
        """The same statement in another unit."""
        if self.doubt:
            return replace(self, value=increasing(self.value))
        ends = [increasing(x) for x in (self.value, self.low, self.high, self.detectable)]
        return Difference(ends[0], ends[1], ends[2], self.p_value, ends[3])


def paired_difference(
    baseline: Values, other: Values, clusters: Clusters | None = None, reach: Reach = (0.0, 0.0)
) -> Difference:
    """Mean of `other - baseline` over items: [n], [n]; those of one cluster [n] are alike. `reach`: see `mean`."""
    return clustered_mean(other - baseline, clusters, reach)


def clustered_mean(values: Values, clusters: Clusters | None, reach: Reach = (0.0, 0.0)) -> Difference:
    """The mean of items [n] that are alike within their cluster [n], windows of a document for one.

    What varies is a cluster: the mean is the ratio of two sums over clusters, and its jackknife (a cluster left out at
    a time, known as CR3, which few clusters of unequal size do not make too narrow) gives as many values as there are
    clusters, to which everything applies that `mean` does with a small sample.
    """
    if clusters is None or observations(len(values), clusters) == len(values):
        return mean(values, reach=reach)
    return mean(_by_cluster(values, clusters), float(values.mean()), "documents", reach)


def standard_error(values: Values, clusters: Clusters | None) -> float | None:
    """Of the mean of items [n], in clusters [n] where these are alike; None of a single one."""
    of_each = values if clusters is None else _by_cluster(values, clusters)
    return float(of_each.std(ddof=1) / math.sqrt(len(of_each))) if len(of_each) > 1 else None


def observations(items: int, clusters: Clusters | None) -> int:
    """How many of the items tell something of their own."""
    return items if clusters is None else len(np.unique(clusters))


def mean(values: Values, observed: float | None = None, of: str = "items", reach: Reach = (0.0, 0.0)) -> Difference:
    """The mean of items [n] against zero; `observed` is the value to report where the mean is only near it.

    `reach` of a score whose items stay as they are until they jump, as that of a text does: how far it falls and rises
    when every item does. Where none of n did, so many of all may as leave n alone in 2.5 % of samples (Clopper and
    Pearson 1934).

    Student's interval, whose level holds for symmetric items however heavy their tails; of items that are skewed the
    wider at each end of it and the bootstrap of the t statistic (Efron 1981), whose level holds for these too. So each
    meets 5 % within 2 points, for normal, heavy-tailed, half-unchanged and exponential differences
    (tests/benchmarks/intervals.py); with skew that neither bears, nothing is said.
    """
    items = len(values)
    centre = float(values.mean()) if items else 0.0
    value = centre if observed is None else observed
    if items < LEAST_ITEMS:
        return _unknown(value, f"{items} {of if items != 1 else of[:-1]}; {LEAST_ITEMS} are the least")
    deviations = values - centre
    spread = float(np.sqrt((deviations**2).sum() / (items - 1)))
    if spread <= 1e-12 * float(np.abs(values).max()):
        if items < LEAST_UNCHANGED:
            return _unknown(value, f"{items} {of} that do not vary; {LEAST_UNCHANGED} are the least")
        if centre == 0:
            fall, rise = (end * (1 - (ALPHA / 2) ** (1 / items)) for end in reach)
            return Difference(value, value - fall, value + rise, 1.0, fall)
        return Difference(value, value, value, 2.0 ** (1 - items), 0.0)
    shift = float((deviations**3).mean() / (deviations**2).mean() ** 1.5) / math.sqrt(items)
    if abs(shift) > SKEW_LIMIT:
        return _unknown(value, f"of {items} {of} one or two carry the whole difference")
    error, student = spread / math.sqrt(items), float(scipy.special.stdtrit(items - 1, 1 - ALPHA / 2))
    p_value, below, above = 2 * float(scipy.special.stdtr(items - 1, -abs(value / error))), student, student
    if abs(shift) > SKEWED:
        drawn = _studentized(deviations / spread)
        rank = round((RESAMPLES + 1) * ALPHA / 2) - 1  # beyond it p < 0.05, at it p = 0.05
        below, above = max(student, float(drawn[-rank])), max(student, -float(drawn[rank - 1]))
        beyond = 1 + min(int((drawn >= value / error).sum()), int((drawn <= value / error).sum()))
        p_value = max(p_value, min(1.0, 2 * beyond / (RESAMPLES + 1)))
    low, high = value - error * below, value + error * above
    if not math.isfinite(low + high):
        return _unknown(value, f"{items} {of}, too few of which vary")
    detectable = (high - low) / 2 * (1 + float(scipy.special.stdtrit(items - 1, POWER)) / student)
    return Difference(value, low, high, p_value, detectable)


def noise_of_mean(moves: Values, items: int) -> float:
    """How far the mean of `items` moves (95 %) when each moves as these few did [n], whose mean is zero."""
    return float(scipy.special.stdtrit(len(moves), 1 - ALPHA / 2) * np.sqrt((moves**2).mean() / items))


def jackknife(score: Callable[[Values], float], *sides: Values) -> tuple[list[float], list[Values]]:
    """A corpus score of sums of per-item statistics [n, k], by side: its value, and its pseudo-values [n].

    n * score - (n - 1) * score without the item (Tukey 1958): their mean and spread are the score's, so what holds
    for means of items holds for them. Items are paired over sides.
    """
    values, pseudo = [], []
    for rows in sides:
        total, items = rows.sum(axis=0), len(rows)
        value = score(total)
        without = np.array([score(total - row) for row in rows])
        values.append(value)
        pseudo.append(items * value - (items - 1) * without)
    return values, pseudo


def randomization(score: Callable[[Values], float], baseline: Values, other: Values) -> float:
    """Two-sided p-value of a difference of corpus scores by approximate randomization (Riezler and Maxwell 2005).

    Statistics of each item [n, k] change sides with probability 1/2: how often is the difference as large as seen?
    """
    observed = abs(score(other.sum(axis=0)) - score(baseline.sum(axis=0)))
    rng = np.random.default_rng(SEED)
    first, change = baseline.sum(axis=0), other - baseline
    extreme = 0
    for count in _portions(RESAMPLES, len(baseline)):
        moved = rng.integers(0, 2, size=(count, len(baseline))) @ change
        # the tolerance keeps rounding in the last place from turning "as far" into "nearer"
        extreme += sum(
            abs(score(first + change.sum(axis=0) - row) - score(first + row)) >= observed * (1 - 1e-9) for row in moved
        )
    return (1 + extreme) / (1 + RESAMPLES)


def proportion_difference(lost: int, gained: int, items: int) -> Difference:
    """Difference of two accuracies on the same items, from the two kinds of flips.

    The wider at each end of the exact interval given the number of flips (Clopper and Pearson 1934) and that of
    Agresti and Min 2005, half an item added to each cell of the 2 x 2 table, which does not shrink to nothing when no
    answer flipped. p-value: the larger of exact McNemar's and the latter's.
    """
    value = (gained - lost) / items if items else 0.0
    if items < LEAST_ITEMS:
        return _unknown(value, f"{items} items; {LEAST_ITEMS} are the least")
    b, c, n = gained + 0.5, lost + 0.5, items + 2
    centre = (b - c) / n
    error = math.sqrt(b + c - (b - c) ** 2 / n) / n
    half = float(scipy.special.ndtri(1 - ALPHA / 2)) * error
    flips = lost + gained
    share_low = float(scipy.special.betaincinv(gained, lost + 1, ALPHA / 2)) if gained else 0.0
    share_high = float(scipy.special.betaincinv(gained + 1, lost, 1 - ALPHA / 2)) if lost else 1.0
    low = min(centre - half, (2 * share_low - 1) * flips / items)
    high = max(centre + half, (2 * share_high - 1) * flips / items)
    p_value = max(mcnemar(lost, gained), 2 * float(scipy.special.ndtr(-abs(centre) / error)))
    detectable = (high - low) / 2 * (1 + float(scipy.special.ndtri(POWER) / scipy.special.ndtri(1 - ALPHA / 2)))
    return Difference(value, low, high, p_value, detectable)


def proportion_interval(right: int, items: int) -> tuple[float, float]:
    """Exact 95 % interval of a share (Clopper and Pearson 1934)."""
    low = float(scipy.special.betaincinv(right, items - right + 1, ALPHA / 2)) if right else 0.0
    high = float(scipy.special.betaincinv(right + 1, items - right, 1 - ALPHA / 2)) if right < items else 1.0
    return low, high


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p-value of McNemar's test: flips are tosses of a fair coin."""
    return min(1.0, 2 * float(scipy.special.bdtr(min(lost, gained), lost + gained, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of tests that are read together, each corrected for the others (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def overlap(text: str, other: str, n: int = 13) -> float:
    """Share of the n-grams of words of `text` that also stand in `other` (13: GPT-3's contamination check)."""
    grams = set(_grams(text, n))
    return len(grams & set(_grams(other, n))) / len(grams) if grams else 0.0


def _by_cluster(values: Values, clusters: Clusters) -> Values:
    """A value a cluster: the pseudo-value of the mean over all items."""
    of = np.unique(clusters, return_inverse=True)[1]
    sums = np.stack([np.bincount(of, weights=values), np.bincount(of).astype(np.float64)], axis=1)
    if len(sums) == 1:
        return np.array([values.mean()])
    return jackknife(lambda total: float(total[0] / total[1]), sums)[1][0]


def _unknown(value: float, doubt: str) -> Difference:
    return Difference(value, -math.inf, math.inf, 1.0, math.inf, doubt)


def _studentized(deviations: Values) -> Values:
    """Sorted t statistics of `RESAMPLES` draws with replacement from items [n] with mean 0.

    A draw of equal items has no spread: its statistic is infinite, on the side of its mean.
    """
    rng = np.random.default_rng(SEED)
    items = len(deviations)
    drawn = []
    for count in _portions(RESAMPLES, items):
        samples = deviations[rng.integers(0, items, size=(count, items))]
        first = samples.mean(axis=1)
        variance = (np.einsum("ij,ij->i", samples, samples) / items - first**2) / (items - 1)
        flat = variance <= 1e-12 / items
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(flat, np.where(np.abs(first) < 1e-9, 0, np.inf * np.sign(first)), first / np.sqrt(variance))
        drawn.append(t)
    return np.sort(np.concatenate(drawn))


def _grams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    tokens = words(text)
    return zip(*(tokens[i:] for i in range(n)))


def _portions(resamples: int, items: int) -> Iterator[int]:
    """Cut the resamples so that the items of one portion stay near 32 MB."""
    portion = max(1, 4_000_000 // items)
    for start in range(0, resamples, portion):
        yield min(portion, resamples - start)
