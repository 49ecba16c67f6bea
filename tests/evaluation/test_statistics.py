"""Intervals that cover, p-values that hold, against closed forms."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimrun.evaluation import statistics
from slimrun.evaluation.comparison import Margin, Report, corrected, scored


@pytest.mark.parametrize(("lost", "gained", "p"), [(0, 0, 1), (5, 0, 0.0625), (3, 3, 1), (10, 2, 2 * 79 / 4096)])
def test_mcnemar_by_hand(lost: int, gained: int, p: float) -> None:
    assert statistics.mcnemar(lost, gained) == pytest.approx(p)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_symmetric_and_a_probability(lost: int, gained: int) -> None:
    p = statistics.mcnemar(lost, gained)
    assert 0 < p <= 1
    assert p == statistics.mcnemar(gained, lost)


def test_mcnemar_takes_the_flips_of_a_whole_benchmark() -> None:
    assert statistics.mcnemar(600, 600) == 1
    assert statistics.mcnemar(5000, 5200) == pytest.approx(
        0.0487, abs=1e-3
    )  # normal with a continuity correction: z = 1.97
    assert statistics.proportion_difference(1000, 900, 14042).p_value < 0.05


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    change = statistics.mean(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert change.low == pytest.approx(values.mean() - half, abs=0.03)
    assert change.high == pytest.approx(values.mean() + half, abs=0.03)


KINDS: dict[str, Callable[[np.random.Generator, int], statistics.Values]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy-tailed": lambda rng, n: rng.standard_t(3, size=n),
    "half unchanged": lambda rng, n: rng.normal(size=n) * (rng.random(n) < 0.5),
    "skewed": lambda rng, n: rng.exponential(size=n) - 1,
}


@pytest.mark.parametrize("items", [12, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_the_interval_misses_as_often_as_it_says(kind: str, items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rng = np.random.default_rng(items)
    changes = [statistics.mean(KINDS[kind](rng, items)) for _ in range(400)]
    said = [change for change in changes if not change.doubt]
    missed = sum(not change.low <= 0 <= change.high for change in said) / max(1, len(said))
    # tests/benchmarks/intervals.py has 5 % within 2 points; the standard error of these 400 sets is 1.1 points
    assert 0.015 <= missed <= 0.085
    assert all((change.p_value < 0.05) == (not change.low <= 0 <= change.high) for change in changes)


@pytest.mark.parametrize("count", [12, 40])
def test_the_interval_of_documents_misses_as_often_as_it_says(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rng = np.random.default_rng(count)
    missed = 0
    for _ in range(400):
        clusters = np.repeat(np.arange(count), rng.integers(1, 10, size=count))
        change = statistics.clustered_mean(rng.normal(size=count)[clusters] + rng.normal(size=len(clusters)), clusters)
        missed += not change.low <= 0 <= change.high
    assert 0.015 <= missed / 400 <= 0.085


def test_equal_systems_differ_in_nothing() -> None:
    values = np.random.default_rng(3).random(20)
    assert statistics.paired_difference(values, values) == statistics.Difference(0, 0, 0, 1, 0)


@pytest.mark.parametrize("items", [0, 1, 11])
def test_a_handful_of_items_says_nothing(items: int) -> None:
    change = statistics.mean(np.random.default_rng(6).normal(5, 1, size=items))
    assert (change.interval, change.p_value) == (None, 1)
    assert change.doubt == f"{items} {'item' if items == 1 else 'items'}; 12 are the least"


def test_unchanged_items_say_something_from_twenty_on() -> None:
    assert statistics.mean(np.zeros(19)).doubt == "19 items that do not vary; 20 are the least"
    assert statistics.mean(np.zeros(20)).interval == (0, 0)


@pytest.mark.parametrize("items", [20, 50, 200])
def test_of_texts_that_stayed_alike_as_many_may_change_as_so_few_miss(items: int) -> None:
    change = statistics.mean(np.zeros(items), reach=(30.0, 70.0))
    share = -change.low / 30
    assert (1 - share) ** items == pytest.approx(0.025)
    assert (change.value, change.high, change.p_value) == (0, pytest.approx(70 * share), 1)
    assert change.detectable == -change.low


def test_one_changed_item_is_no_evidence() -> None:
    values = np.zeros(20)
    changed = values.copy()
    changed[7] = 1
    assert statistics.paired_difference(values, changed).doubt == "of 20 items one or two carry the whole difference"


def test_pairing_sees_what_two_intervals_do_not() -> None:
    items = np.random.default_rng(4).normal(0, 10, size=100)
    change = statistics.paired_difference(items, items - 0.5)
    assert (change.low, change.high) == pytest.approx((-0.5, -0.5))
    assert change.p_value < 0.001


@pytest.mark.parametrize("items", [12, 40])
def test_detectable_is_found_as_often_as_it_says(items: int) -> None:
    rng = np.random.default_rng(items)
    samples = [rng.normal(size=items) for _ in range(300)]
    said = [values for values in samples if not statistics.mean(values).doubt]
    shown = [statistics.mean(values + statistics.mean(values).detectable).p_value < 0.05 for values in said]
    assert 0.72 <= np.mean(shown) <= 0.9


def test_jackknife_of_a_mean_is_its_items() -> None:
    rows = np.stack([np.random.default_rng(8).random(30), np.ones(30)], axis=1)
    (value,), (pseudo,) = statistics.jackknife(lambda total: float(total[0] / total[1]), rows)
    assert value == pytest.approx(rows[:, 0].mean())
    np.testing.assert_allclose(pseudo, rows[:, 0])


def test_randomization_is_the_share_of_swaps_that_reach_as_far() -> None:
    zeros, ones = np.zeros((4, 1)), np.ones((4, 1))
    # 2 of the 16 ways to swap four items lead as far: none and all
    assert statistics.randomization(lambda total: float(total[0]), zeros, ones) == pytest.approx(1 / 8, abs=0.01)
    assert statistics.randomization(lambda total: float(total[0]), ones, ones) == 1


@pytest.mark.parametrize(
    ("given", "corrected"),
    [([], []), ([0.04], [0.04]), ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]), ([0.5, 0.9], [1.0, 1.0])],
)
def test_holm_by_hand(given: list[float], corrected: list[float]) -> None:
    assert statistics.holm(given) == pytest.approx(corrected)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 400))
def test_flips_and_their_interval_agree(lost: int, gained: int, kept: int) -> None:
    change = statistics.proportion_difference(lost, gained, lost + gained + kept)
    assert change.low <= change.value <= change.high
    assert (change.p_value < 0.05) == (not change.low <= 0 <= change.high)
    assert change.p_value >= statistics.mcnemar(lost, gained) or change.doubt


def test_no_flip_is_no_certainty() -> None:
    change = statistics.proportion_difference(0, 0, 100)
    assert change.value == 0
    assert change.low < -0.01 < 0.01 < change.high
    assert change.p_value == 1


def judged(change: statistics.Difference, **said: Any) -> str:
    return scored("t", "s", (1, 1), (None, None), change, margin=Margin(5, "%"), **said).verdict


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-1, 5, "non-inferior"), (6, 9, "worse"), (4, 6, "inconclusive"), (-9, -6, "non-inferior")],
)
def test_verdict(low: float, high: float, word: str) -> None:
    change = statistics.Difference((low + high) / 2, low, high, 0.5, 1)
    assert judged(change, higher_is_better=False) == f"{word} (margin 5 %)"
    gain = statistics.Difference(-(low + high) / 2, -high, -low, 0.5, 1)
    assert judged(gain) == f"{word} (margin 5 %)"


def test_worse_is_neither_rounding_nor_the_number_of_tasks() -> None:
    row = scored("t", "x", (50, 40), (None, None), statistics.Difference(-10, -13, -7, 0.03, 4),
                 margin=Margin(5, "points"), items=100)  # fmt: skip
    assert row.verdict == "worse (margin 5 points)"
    noisy = replace(row, noise=15.0)
    assert noisy.judged(5) == "inconclusive (rounding alone moves it by 15)"
    assert noisy.judged(20) == "non-inferior (margin 20 points)"
    four = {name: Report({}, [replace(row, task=name)]) for name in ("a", "b", "c", "d")}
    [together] = corrected(four)["a"].scores
    assert (together.p_holm, together.verdict) == (0.12, "inconclusive (margin 5 points)")
    assert corrected(four)["a"].metrics["a/verdict"] == together.verdict
    assert corrected({"a": four["a"]})["a"].scores[0].word == "worse"


def test_no_verdict_where_nothing_can_be_said() -> None:
    assert judged(statistics.mean(np.ones(3))) == "too few to say (3 items; 12 are the least)"
    assert judged(statistics.mean(np.ones(30)), floor="it guesses") == "inconclusive (it guesses)"


@pytest.mark.parametrize(
    ("margin", "told"),
    [
        (Margin(5, "points", 100), "100 items decide margins from 10 points on; 5 takes about 400"),
        (Margin(12, "points", 100), "100 items decide margins from 10 points on"),
        (None, ""),
    ],
)
def test_what_the_items_decide(margin: Margin | None, told: str) -> None:
    change = statistics.Difference(0, -0.07, 0.07, 1, 0.1)
    assert scored("t", "s", (0.5, 0.5), (None, None), change, margin=margin, items=100).decides == told
    doubtful = statistics.mean(np.ones(3))
    assert scored("t", "s", (0.5, 0.5), (None, None), doubtful, margin=margin, items=3).decides == ""


def test_a_margin_that_is_decided_is_found_non_inferior_four_times_in_five() -> None:
    rng = np.random.default_rng(3)
    changes = [statistics.mean(rng.normal(size=40)) for _ in range(300)]
    within = [change.high <= change.detectable for change in changes]
    assert 0.74 < np.mean(within) < 0.88


def test_resamples_do_not_depend_on_the_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random(30)
    whole = statistics.mean(values)
    monkeypatch.setattr(statistics, "_portions", lambda resamples, items: iter([4000, resamples - 4000]))
    assert statistics.mean(values) == whole


def test_overlap() -> None:
    text = " ".join(f"w{i}" for i in range(20))
    assert statistics.overlap(text, f"before {text} after") == 1
    assert statistics.overlap(text, text[: len(text) // 2]) == 0  # ten words hold no 13-gram
    assert statistics.overlap("人人生而自由在尊严和权利上一律平等", "，人人生而自由在尊严和权利上一律平等。") == 1
    assert statistics.overlap("too short", "too short") == 0
