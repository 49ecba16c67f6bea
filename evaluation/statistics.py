"""How sure a difference between two models on the same items is.

Everything is paired: both models saw the same items, so the noise of the items cancels and only the noise of
the difference is left. Fixed seed, so a number can be had again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slimrun.evaluation.text import words

Values = npt.NDArray[np.float64]

SEED = 12345
RESAMPLES = 10_000
Z_95, Z_80 = 1.959964, 0.841621  # normal quantiles: two-sided 95 %, power 80 %


@dataclass(frozen=True)
class Difference:
    """A paired difference (quantized minus float) with its 95 % interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float

    @property
    def detectable(self) -> float:
        """The smallest true difference this sample would have shown, at 95 % confidence and 80 % power."""
        return (self.high - self.low) / 2 * (Z_95 + Z_80) / Z_95


def bootstrap_means(values: Values, resamples: int = RESAMPLES) -> Values:
    """Column means of `resamples` draws with replacement of the rows: [n, k] -> [resamples, k].

    A draw is a vector of how often each row was taken (multinomial), so all of them are one matrix product.
    """
    rng = np.random.default_rng(SEED)
    n = len(values)
    shares = np.full(n, 1 / n)
    means = [rng.multinomial(n, shares, size=count) @ values / n for count in _portions(resamples, n)]
    return np.concatenate(means)


def interval(samples: Values) -> tuple[float, float]:
    """The middle 95 % of bootstrap samples."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


def mean_interval(values: Values) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over items."""
    return interval(bootstrap_means(values[:, None]))


def difference(observed: float, samples: Values) -> Difference:
    """Interval and p-value of an observed difference from its bootstrap samples.

    The p-value is the share of samples that lie as far from the observed difference as zero does (the bootstrap
    distribution, shifted to the null hypothesis). `sacrebleu.significance.PairedTest` is not used for it: it counts
    `>` where two systems that hardly differ need `>=`, so identical outputs get p = 0.001 there, and 1 here.
    """
    low, high = interval(samples)
    # the tolerance keeps rounding in the last place from turning "as far" into "nearer"
    extreme = np.abs(samples - observed) >= abs(observed) * (1 - 1e-9)
    p_value = (1 + int(extreme.sum())) / (1 + len(samples))
    return Difference(observed, low, high, p_value)


def paired_difference(baseline: Values, other: Values) -> Difference:
    """Mean of `other - baseline` over items: [n], [n]."""
    differences = other - baseline
    return difference(float(differences.mean()), bootstrap_means(differences[:, None])[:, 0])


def proportion_difference(lost: int, gained: int, items: int) -> Difference:
    """Difference of two accuracies on the same items, from the two kinds of flips.

    Interval: Agresti and Min 2005, half an item added to each cell of the 2 x 2 table, so that it does not shrink
    to nothing when no answer flipped. p-value: exact McNemar.
    """
    b, c, n = gained + 0.5, lost + 0.5, items + 2
    centre = (b - c) / n
    half = Z_95 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return Difference((gained - lost) / items, centre - half, centre + half, mcnemar(lost, gained))


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p-value of McNemar's test: flips are tosses of a fair coin."""
    flips = lost + gained
    tail = sum(math.comb(flips, k) for k in range(min(lost, gained) + 1))
    return min(1.0, 2.0 * tail / float(2**flips))


def overlap(text: str, other: str, n: int = 13) -> float:
    """Share of the n-grams of words of `text` that also stand in `other` (13: GPT-3's contamination check)."""
    grams = set(_grams(text, n))
    return len(grams & set(_grams(other, n))) / len(grams) if grams else 0.0


def _grams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    found = words(text)
    return zip(*(found[i:] for i in range(n)))


def _portions(resamples: int, items: int) -> Iterator[int]:
    """Cut the resamples so that the count matrix of one portion stays near 32 MB."""
    portion = max(1, 4_000_000 // items)
    for start in range(0, resamples, portion):
        yield min(portion, resamples - start)
