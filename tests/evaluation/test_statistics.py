"""Intervals that cover, p-values that hold, against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimrun.evaluation import statistics
from slimrun.evaluation.comparison import verdict


@pytest.mark.parametrize(("lost", "gained", "p"), [(0, 0, 1), (5, 0, 0.0625), (3, 3, 1), (10, 2, 2 * 79 / 4096)])
def test_mcnemar_by_hand(lost: int, gained: int, p: float) -> None:
    assert statistics.mcnemar(lost, gained) == pytest.approx(p)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_symmetric_and_a_probability(lost: int, gained: int) -> None:
    p = statistics.mcnemar(lost, gained)
    assert 0 < p <= 1
    assert p == statistics.mcnemar(gained, lost)


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    low, high = statistics.mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_coverage_of_the_paired_interval() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        noise = rng.normal(size=32)
        samples = statistics.bootstrap_means((0.3 + noise)[:, None], 1000)[:, 0]
        low, high = statistics.interval(samples)
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99  # percentile intervals of 32 items cover a little less than 95 %


def test_p_value_of_no_effect_is_uniform_enough() -> None:
    rng = np.random.default_rng(2)
    zeros = np.zeros(40)
    found = [statistics.paired_difference(zeros, rng.normal(size=40)).p_value for _ in range(100)]
    assert sum(p < 0.05 for p in found) <= 14
    assert 0.3 < np.mean(found) < 0.7


def test_equal_systems_differ_in_nothing() -> None:
    values = np.random.default_rng(3).random(20)
    assert statistics.paired_difference(values, values) == statistics.Difference(0, 0, 0, 1)


def test_one_changed_item_is_no_evidence() -> None:
    values = np.zeros(20)
    changed = values.copy()
    changed[7] = 1
    assert statistics.paired_difference(values, changed).p_value > 0.3


def test_pairing_sees_what_two_intervals_do_not() -> None:
    items = np.random.default_rng(4).normal(0, 10, size=100)
    change = statistics.paired_difference(items, items - 0.5)
    assert (change.low, change.high) == pytest.approx((-0.5, -0.5))
    assert change.p_value < 0.001


def test_detectable_is_what_the_interval_could_show() -> None:
    change = statistics.Difference(0, -1.959964, 1.959964, 1)
    assert change.detectable == pytest.approx(2.8016, abs=1e-3)  # standard error 1, 95 % and 80 % power


def test_no_flip_is_no_certainty() -> None:
    change = statistics.proportion_difference(0, 0, 100)
    assert change.value == 0
    assert change.low < -0.01 < 0.01 < change.high
    assert change.p_value == 1


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-1, 5, "non-inferior"), (6, 9, "worse"), (4, 6, "inconclusive"), (-9, -6, "non-inferior")],
)
def test_verdict(low: float, high: float, word: str) -> None:
    assert verdict(low, high, 5, "%") == f"{word} (margin 5 %)"


def test_samples_do_not_depend_on_the_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random((30, 2))
    whole = statistics.bootstrap_means(values, 500)
    assert whole.shape == (500, 2)
    monkeypatch.setattr(statistics, "_portions", lambda resamples, items: iter([200, 300]))
    np.testing.assert_allclose(statistics.bootstrap_means(values, 500), whole)


def test_overlap() -> None:
    text = " ".join(f"w{i}" for i in range(20))
    assert statistics.overlap(text, f"before {text} after") == 1
    assert statistics.overlap(text, text[: len(text) // 2]) == 0  # ten words hold no 13-gram
    assert statistics.overlap("人人生而自由在尊严和权利上一律平等", "，人人生而自由在尊严和权利上一律平等。") == 1
    assert statistics.overlap("too short", "too short") == 0
