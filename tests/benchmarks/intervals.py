"""How often the intervals of `evaluation.statistics` miss a true difference of zero: 5 % is what they say.

    python tests/benchmarks/intervals.py [--sets 2000]

A row a kind of difference, a column a number of items: misses in percent, and in brackets the share of sets about
which nothing is said. Beside it the percentile bootstrap that most tools print. Where items belong to documents, one to
nine each, the columns are numbers of documents. Last the power at the detectable difference, 80 % by definition.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from slimrun.evaluation import statistics
from slimrun.evaluation.statistics import Clusters, Values

ITEMS = (12, 15, 20, 50, 200, 1000)
Draw = Callable[[np.random.Generator, int], Values]


def documents(rng: np.random.Generator, count: int) -> tuple[Values, Clusters]:
    """Windows of documents, alike within each: values, and which document each is from."""
    clusters = np.repeat(np.arange(count), rng.integers(1, 10, size=count))
    return rng.normal(size=count)[clusters] + rng.normal(size=len(clusters)), clusters


def kinds() -> dict[str, tuple[Draw, float]]:
    """Differences by name, with their true mean."""
    return {
        "normal": (lambda rng, n: rng.normal(size=n), 0),
        "heavy-tailed (Student, 3 degrees)": (lambda rng, n: rng.standard_t(3, size=n), 0),
        "half of the items unchanged": (lambda rng, n: rng.normal(size=n) * (rng.random(n) < 0.5), 0),
        "skewed (exponential)": (lambda rng, n: rng.exponential(size=n), 1),
        "5 % of the items collapse": (lambda rng, n: rng.normal(size=n) + 10 * (rng.random(n) < 0.05), 0.5),
    }


def percentile(values: Values) -> tuple[float, float]:
    """The interval that most tools print."""
    draws = np.random.default_rng(0).integers(0, len(values), size=(1000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=500)
    sets = parser.parse_args().sets
    rng = np.random.default_rng(1)
    print(f"{'misses in % (nothing said, %)':36}" + "".join(f"{n:>12}" for n in ITEMS))
    for name, (draw, truth) in kinds().items():
        own, others = [], []
        for n in ITEMS:
            samples = [draw(rng, n) - truth for _ in range(sets)]
            changes = [statistics.mean(sample) for sample in samples]
            said = [change for change in changes if not change.doubt]
            missed = sum(not change.low <= 0 <= change.high for change in said)
            own.append(f"{100 * missed / max(len(said), 1):.1f} ({100 * (1 - len(said) / sets):.0f})")
            others.append(sum(not low <= 0 <= high for low, high in map(percentile, samples)))
        print(f"{name:36}" + "".join(f"{cell:>12}" for cell in own))
        print(
            f"{'  percentile bootstrap':36}" + "".join(f"{100 * missed / sets:12.1f}" for missed in others), flush=True
        )
    for name, by_document in (("windows of documents, by document", True), ("  by window", False)):
        cells = []
        for n in ITEMS:
            draws = [documents(rng, n) for _ in range(sets)]
            changes = [statistics.clustered_mean(values, own if by_document else None) for values, own in draws]
            said = [change for change in changes if not change.doubt]
            missed = sum(not change.low <= 0 <= change.high for change in said)
            cells.append(f"{100 * missed / max(len(said), 1):.1f} ({100 * (1 - len(said) / sets):.0f})")
        print(f"{name:36}" + "".join(f"{cell:>12}" for cell in cells), flush=True)
    powers = []
    for n in ITEMS:
        samples = [rng.normal(size=n) for _ in range(sets)]
        said = [(sample, change) for sample in samples if not (change := statistics.mean(sample)).doubt]
        shown = sum(statistics.mean(sample + change.detectable).p_value < 0.05 for sample, change in said)
        powers.append(100 * shown / len(said))
    print(f"{'power at the detectable difference':36}" + "".join(f"{power:12.1f}" for power in powers))


if __name__ == "__main__":
    main()
