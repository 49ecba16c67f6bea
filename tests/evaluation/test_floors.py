"""Where nothing can be lost nothing is found non-inferior."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimrun.evaluation.base import Outputs, Reference, Task
from slimrun.evaluation.comparison import Report
from slimrun.evaluation.metric.accuracy import accuracy, answer_probability, within_margin
from slimrun.evaluation.task.multiple_choice import MultipleChoice
from slimrun.evaluation.task.perplexity import Perplexity
from slimrun.evaluation.task.summarization import Summarization
from slimrun.evaluation.task.translation import Translation
from slimrun.ops.framework.pytorch import PyTorch
from tests.conftest import CPU, described
from tests.evaluation.fake import VOCABULARY, WIDTH, FakeModel, silent


class Random(FakeModel):
    """One that has learned nothing: every byte is about as likely as the other."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self._head = rng.normal(scale=0.3, size=(WIDTH, VOCABULARY)).astype(np.float32)
        self._bias = np.zeros(VOCABULARY, np.float32)


def compared(task: Task, model: FakeModel, other: FakeModel) -> Report:
    before = task.evaluate(model, None, silent)
    return task.compare("t", before, task.evaluate(other, Reference(before, model.log_probs), silent))


@pytest.mark.parametrize(
    "task",
    [
        Perplexity(windows=30, window=60),
        MultipleChoice(limit=60),
        MultipleChoice(limit=60, judged_by="accuracy"),
        Summarization(limit=20, generate=None, max_new_tokens=8),
        Summarization(limit=20, generate=None, max_new_tokens=8, judged_by="rouge"),
        Translation(limit=20, generate=None, max_new_tokens=8),
        Translation(limit=20, generate=None, max_new_tokens=8, judged_by="bleu"),
    ],
    ids=lambda task: f"{type(task).__name__}-{getattr(task, 'judged_by', 'loss')}",
)
def test_unrelated_random_models_are_never_non_inferior(task: Task) -> None:
    for seed in range(4):
        report = compared(task, Random(seed), Random(seed + 100))
        assert report.scores[0].word in ("inconclusive", "worse"), report.scores[0].verdict
        assert compared(task, Random(seed), Random(seed)).scores[0].word != "non-inferior"


@pytest.mark.parametrize("spread", [0.02, 0.005])
@pytest.mark.parametrize(
    "task",
    [
        Perplexity(windows=16, window=60),
        Translation(limit=16, generate=1, max_new_tokens=2),
        Translation(limit=16, generate=1, max_new_tokens=2, source="en", target="zh"),
    ],
    ids=["text", "fr-en", "en-zh"],
)
def test_untrained_transformers_are_never_non_inferior(task: Task, spread: float) -> None:
    """Which prefer some tokens by chance, and so lie a little above or below what guessing has."""
    untrained = described(initializer_range=spread, max_position_embeddings=2048)
    models = [PyTorch().load(untrained.open(Path("unused"), seed), CPU) for seed in range(3)]
    sides = [task.evaluate(model, None, silent) for model in models]
    for before in sides:
        for after in sides:
            assert task.compare("t", before, after).scores[0].word != "non-inferior"


@pytest.mark.parametrize("judged_by", ["likelihood", "accuracy"])
def test_always_saying_the_commoner_answer_is_no_better_than_chance(tmp_path: Path, judged_by: str) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"question": f"q{i}", "options": ["no", "yes"], "answer": int(i % 5 > 0)} for i in range(200)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    own = MultipleChoice(path=str(path), limit=200, judged_by=judged_by)
    yes = {"log_probs": np.tile([-3.0, -0.1], 200)}
    assert own.compare("t", yes, yes).scores[0].word == "inconclusive"
    right = {"log_probs": np.array([[-0.1, -3.0], [-3.0, -0.1]])[[row["answer"] for row in rows]].ravel()}
    assert own.compare("t", right, right).scores[0].word == "non-inferior"


def test_a_model_that_is_nearly_always_right_is_above_chance() -> None:
    rng, right = np.random.default_rng(0), np.ones(200, np.bool_)
    was, chance = 0.999 - 1e-3 * rng.random(200), np.full(200, 0.25)
    was[:2], right[:2] = 0.01, False
    own = answer_probability("t", was, was, chance, right=right, margin_points=2.0)
    assert own.word == "non-inferior"
    few = answer_probability("t", was[-8:], was[-8:], chance[-8:], right=right[-8:], margin_points=2.0)
    assert few.verdict == "too few to say (8 items; 12 are the least)"


def test_of_one_right_answer_in_a_hundred_nothing_can_be_lost() -> None:
    for hits, word in ((1, "inconclusive"), (40, "worse")):
        was = np.arange(100) < hits
        assert within_margin(was, 5.0) == ("" if word == "worse" else "baseline accuracy 0.01 may be within the margin")
        own, _ = accuracy("t", was, ~was & False, margin_points=5.0, floor=within_margin(was, 5.0))
        assert own.word == word


def test_of_no_summary_that_fits_nothing_can_be_lost() -> None:
    own = Summarization(limit=20, generate=None, judged_by="rouge")
    texts = ["xyz"] * 20
    texts[3] = own.references()[3][0]  # so skewed that nothing is known of the rest
    outputs: Outputs = {"texts": np.array(texts), "reference_log_probs": np.zeros(20), "vocabulary": np.array([9])}
    assert own.compare("t", outputs, outputs).scores[0].word == "inconclusive"


@pytest.mark.parametrize(("margin", "word"), [(2.0, "inconclusive"), (20.0, "non-inferior")])
def test_equal_answers_bear_the_margin_that_so_few_bear(margin: float, word: str) -> None:
    own = Summarization(limit=20, generate=None, judged_by="rouge", margin_points=margin)
    texts = [several[0] for several in own.references()]
    outputs: Outputs = {"texts": np.array(texts), "reference_log_probs": np.zeros(20), "vocabulary": np.array([9])}
    row = own.compare("t", outputs, outputs).scores[0]
    assert (row.difference, row.word) == (0, word)
    assert row.decides.startswith("20 items decide margins from 16.8 ROUGE-L on")


TWENTY: dict[str, Any] = {"limit": 20, "generate": None}


@pytest.mark.parametrize(
    "task", [Summarization(**TWENTY), Translation(**TWENTY), Summarization(judged_by="rouge", **TWENTY)]
)
def test_empty_against_empty_is_never_non_inferior(task: Summarization | Translation) -> None:
    empty: Outputs = {"texts": np.array([""] * 20), "reference_log_probs": np.zeros(20), "vocabulary": np.array([9])}
    assert task.compare("t", empty, empty).scores[0].word == "inconclusive"


def test_seven_hundred_bytes_are_too_few(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("A sentence of a short text. " * 25)
    [note] = Perplexity(path=str(path)).fit(FakeModel())
    assert note == "windows=32 asked for, the text gives 1"
    report = compared(Perplexity(path=str(path)), FakeModel(), FakeModel())
    assert report.scores[0].verdict == "too few to say (1 item; 12 are the least)"
