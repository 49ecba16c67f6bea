"""What a policy makes of a run's verdicts."""

from typing import Any

import pytest

from slimrun.evaluation.comparison import Margin, Score, scored
from slimrun.evaluation.gate import Decision, Policy, Rule, decide
from slimrun.evaluation.statistics import Difference


def row(task: str, low: float, high: float, baseline: float = 50.0, doubt: str = "", **said: Any) -> Score:
    """A score of which 100 is the best; the margin is 5."""
    change = Difference((low + high) / 2, low, high, 0.5, 1, doubt)
    return scored(task, "points", (baseline, baseline), (None, None), change, margin=Margin(5, "points"), **said)


def ruled(score: Score, rule: Rule, guardrail_pct: float | None = None) -> Decision:
    """What the policy makes of the score, beside another required task that passes."""
    return decide(Policy({"other": Rule(), "t": rule}, guardrail_pct), [row("other", -1, 1), score])


BETTER, UNSURE, WORSE = row("t", -1, 1), row("t", -6, 1), row("t", -9, -6)


@pytest.mark.parametrize(
    ("tier", "outcomes"),
    [
        ("required", ["passed", "not certified", "failed", "not certified"]),
        ("supporting", ["passed", "passed", "failed", "not certified"]),
        ("information", ["passed", "passed", "passed", "passed"]),
    ],
)
def test_what_a_task_counts_for(tier: str, outcomes: list[str]) -> None:
    rows = [BETTER, UNSURE, WORSE, row("not named", -1, 1)]
    assert [ruled(score, Rule(tier)).outcome for score in rows] == outcomes


def test_the_line_says_why() -> None:
    assert ruled(BETTER, Rule()).line == "passed: other, t"
    assert ruled(WORSE, Rule()).line == "failed: t (required) worse (margin 5 points)"
    assert ruled(row("x", 0, 1), Rule("supporting")).line == "not certified: t (supporting) was not run"
    few = row("t", -9, 9, doubt="3 items; 12 are the least")
    assert ruled(few, Rule()).line == "not certified: t (required) too few to say (3 items; 12 are the least)"


def test_a_failure_is_said_before_what_is_not_certified() -> None:
    decision = decide(Policy({"t": Rule(), "absent": Rule()}), [WORSE])
    assert decision.line == "failed: t (required) worse (margin 5 points)"
    assert decision.metrics()["gate/absent"] == "required: was not run"


def test_the_policy_sets_the_margin() -> None:
    assert ruled(UNSURE, Rule(margin=7)).outcome == "passed"
    assert ruled(BETTER, Rule(margin=0.5)).outcome == "not certified"
    assert ruled(WORSE, Rule(margin=5.9)).outcome == "failed"


def test_little_may_be_lost_of_a_low_score() -> None:
    loss = (-4.0, -2.0)
    assert ruled(row("t", *loss, baseline=60), Rule(), guardrail_pct=10).outcome == "passed"
    low = ruled(row("t", *loss, baseline=8), Rule(), guardrail_pct=10)
    assert low.rulings[1].verdict == "worse (margin 0.8 points)"
    percent = row("t", 2, 4, baseline=8, unit="%", higher_is_better=False)
    assert ruled(percent, Rule(), guardrail_pct=3).rulings[1].verdict == "inconclusive (margin 3 points)"


def test_a_float_model_that_guesses_certifies_nothing() -> None:
    assert ruled(row("t", 0, 0, floor="it guesses"), Rule()).outcome == "not certified"
    assert ruled(row("t", -9, -6, floor="it guesses"), Rule()).outcome == "failed"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rule("must"), "tier=must is unknown; allowed: required, supporting, information"),
        (lambda: Rule(margin=-1), "margin=-1 is out of range"),
        (lambda: Policy({"t": Rule("supporting")}), "tasks names none with tier required"),
        (lambda: Policy({"t": Rule()}, -1), "guardrail_pct=-1 is out of range"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
