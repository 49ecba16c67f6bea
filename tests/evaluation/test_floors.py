"""Where nothing can be lost nothing is found non-inferior."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimrun.evaluation.base import Outputs, Reference, Task
from slimrun.evaluation.comparison import Report
from slimrun.evaluation.task.multiple_choice import MultipleChoice
from slimrun.evaluation.task.perplexity import Perplexity
from slimrun.evaluation.task.summarization import Summarization
from slimrun.evaluation.task.translation import Translation
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
