"""A gate: which tasks a quantized model has to hold to pass, and whether it does.

All required tasks have to hold, so none is corrected for the others: whatever their number, a model that is worse in
one of them passes at most 2.5 % of the time (intersection-union test, Berger 1982).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from slimrun.evaluation.base import at_least, one_of
from slimrun.evaluation.comparison import PERCENT, Score

REQUIRED, SUPPORTING, INFORMATION = TIERS = ("required", "supporting", "information")
PASSED, FAILED, NOT_CERTIFIED = "passed", "failed", "not certified"


@dataclass(frozen=True)
class Rule:
    """What a task counts for, and what it may lose: in the unit of its own margin; null: that margin."""

    tier: str = REQUIRED
    margin: float | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        one_of("tier", self.tier, TIERS)
        if self.margin is not None:
            at_least("margin", self.margin, 0)


@dataclass(frozen=True)
class Policy:
    """Required tasks have to be non-inferior, supporting ones must not be worse, the others are shown.

    `guardrail_pct` bounds every loss by a share of the float score too: 2 points are little of 60 and much of 8.
    """

    tasks: dict[str, Rule]
    guardrail_pct: float | None = None

    def __post_init__(self) -> None:
        """Refuse a policy that everything would pass."""
        if self.guardrail_pct is not None:
            at_least("guardrail_pct", self.guardrail_pct, 0)
        if not self.named(REQUIRED):
            raise ValueError(f"tasks names none with tier {REQUIRED}; name one at least")

    def named(self, *tiers: str) -> list[str]:
        """The tasks of these tiers."""
        return [name for name, rule in self.tasks.items() if rule.tier in tiers]

    def margin(self, score: Score) -> float:
        """What the task of this row may lose, in the unit of its margin."""
        own = self.tasks[score.task].margin
        margin = own if own is not None else score.margin or 0.0
        if self.guardrail_pct is None:
            return margin
        whole = 100.0 if score.unit == PERCENT else score.margin_scale * abs(score.float_value)
        return min(margin, self.guardrail_pct / 100 * whole)


@dataclass(frozen=True)
class Ruling:
    """What the gate says of one task."""

    task: str
    tier: str
    verdict: str  # with the margin that the gate allows
    outcome: str


@dataclass(frozen=True)
class Decision:
    """What the gate says of a model."""

    rulings: list[Ruling]

    @property
    def outcome(self) -> str:
        """Failed where a task is worse; not certified where one did not run or its items do not tell."""
        outcomes = [ruling.outcome for ruling in self.rulings]
        return next((word for word in (FAILED, NOT_CERTIFIED) if word in outcomes), PASSED)

    @property
    def passed(self) -> bool:
        """Whether the model may be shipped."""
        return self.outcome == PASSED

    @property
    def line(self) -> str:
        """The outcome, and why, in one line."""
        if self.passed:
            return f"{PASSED}: {', '.join(r.task for r in self.rulings if r.tier == REQUIRED)}"
        reasons = [f"{r.task} ({r.tier}) {r.verdict}" for r in self.rulings if r.outcome == self.outcome]
        return f"{self.outcome}: {'; '.join(reasons)}"

    def metrics(self) -> dict[str, float | str]:
        """The keys of results.json."""
        return {
            "gate/verdict": self.outcome,
            "gate/reason": self.line,
            **{f"gate/{ruling.task}": f"{ruling.tier}: {ruling.verdict}" for ruling in self.rulings},
        }


def decide(policy: Policy, scores: Sequence[Score]) -> Decision:
    """Hold the rows that have a verdict against the policy; what it does not name is for information."""
    judged = {score.task: score for score in scores if score.verdict}
    rulings = []
    for name, rule in policy.tasks.items():
        if name not in judged:
            outcome = PASSED if rule.tier == INFORMATION else NOT_CERTIFIED
            rulings.append(Ruling(name, rule.tier, "was not run", outcome))
            continue
        verdict = judged[name].judged(policy.margin(judged[name]))
        rulings.append(Ruling(name, rule.tier, verdict, _outcome(rule.tier, verdict.partition(" (")[0])))
    beside = [score for name, score in judged.items() if name not in policy.tasks]
    return Decision(rulings + [Ruling(score.task, INFORMATION, score.verdict, PASSED) for score in beside])


def _outcome(tier: str, word: str) -> str:
    if tier == INFORMATION or word == "non-inferior":
        return PASSED
    if word == "worse":
        return FAILED
    return NOT_CERTIFIED if tier == REQUIRED else PASSED
