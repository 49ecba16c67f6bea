"""Scores of single tasks against numbers found by hand."""

import json
import math
import string
from pathlib import Path

import numpy as np
import pytest

from slimrun.evaluation.base import Reference
from slimrun.evaluation.task.last_word import LastWord
from slimrun.evaluation.task.multiple_choice import MultipleChoice
from slimrun.evaluation.task.perplexity import Perplexity
from slimrun.evaluation.task.summarization import Summarization
from slimrun.evaluation.task.translation import Translation
from tests.evaluation import shapes
from tests.evaluation.fake import FakeModel, silent

from .test_tasks import SMALLER, small


def test_perplexity_does_not_depend_on_the_batch() -> None:
    model = FakeModel()
    runs = [
        Perplexity(windows=5, window=40, batch=batch).evaluate(model, None, silent)["log_probs"] for batch in (1, 2, 5)
    ]
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-5)
    np.testing.assert_allclose(runs[0], runs[2], atol=1e-5)


def test_perplexity_report_by_hand() -> None:
    same = {"vocabulary": np.array([100]), "documents": np.arange(24)}
    before = {"log_probs": np.full((24, 9), -1.0, np.float32), **same}
    after = {"log_probs": np.full((24, 9), -1.1, np.float32), **same}
    metrics = Perplexity().compare("perplexity_own", before, after).metrics
    assert metrics["perplexity_own/float"] == pytest.approx(math.e)
    assert metrics["perplexity_own/delta_pct"] == pytest.approx(100 * (math.exp(0.1) - 1), rel=1e-5)
    assert metrics["perplexity_own/verdict"] == "worse (margin 5 %)"
    after["kl"], after["agree"] = np.zeros((24, 9), np.float32), np.ones((24, 9), np.bool_)
    metrics = Perplexity().compare("perplexity_own", before, after).metrics
    assert metrics["fidelity_own/kl_mean"] == 0
    assert metrics["fidelity_own/top1_agreement"] == 1
    few = {key: side[:4] for key, side in before.items()}
    assert Perplexity().compare("p", few, few).metrics["p/verdict"] == ("too few to say (4 items; 12 are the least)")
    guesses = before | {"vocabulary": np.array([2])}
    assert Perplexity().compare("p", guesses, guesses).metrics["p/verdict"] == (
        "inconclusive (baseline perplexity 2.718 is not below 1, half of chance)"
    )


def test_multiple_choice_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"question": f"q{i}", "options": ["no", "a long one"], "answer": i % 2} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # per character the long option of the second pair wins
    before = {"log_probs": np.array([-1.0, -9.0, -3.0, -4.0, -1.0, -9.0, -9.0, -1.0])}
    after = {"log_probs": np.array([-9.0, -1.0, -9.0, -1.0, -1.0, -9.0, -9.0, -1.0])}
    report = MultipleChoice(path=str(path), limit=4).compare("mc", before, after)
    assert report.metrics["mc/accuracy_float"] == 0.75
    assert report.metrics["mc/accuracy_normalized_float"] == 1
    assert report.metrics["mc/accuracy_quant"] == 0.75
    assert report.metrics["mc/answer_log_prob_float"] == (-1 - 4 - 1 - 1) / 4
    assert (report.metrics["mc/flips"], report.metrics["mc/flips_lost"], report.metrics["mc/flips_gained"]) == (
        0.5,
        0.25,
        0.25,
    )
    assert [sample["input"].split()[1] for sample in report.samples] == ["q0", "q1", "q2", "q3"]
    by_length = MultipleChoice(path=str(path), limit=4, normalize=True).compare("mc", before, after).metrics
    assert (by_length["mc/accuracy_float"], by_length["mc/flips"]) == (1, 0.25)


def test_generation_runs_one_shape() -> None:
    model = FakeModel()
    small("summarization", batch=3).evaluate(model, None, silent)
    assert [call for call in model.calls if call[1] == SMALLER["max_new_tokens"]] == [(3, 6), (3, 6)]


@pytest.mark.parametrize("target", ["en", "zh"])
def test_perfect_translation(target: str) -> None:
    task = Translation(target=target, limit=20, generate=None, judged_by="bleu", margin_points=20.0)
    texts = np.array([references[0] for _, references in task._pairs()])
    outputs = {"texts": texts, "reference_log_probs": np.zeros(20)}
    metrics = task.compare("t", outputs, outputs).metrics
    for key in ("bleu_float", "bleu_quant", "chrf_quant", "chrfpp_quant", "bleu_self"):
        assert metrics[f"t/{key}"] == pytest.approx(100), key
    assert metrics["t/ter_quant"] == 0
    assert metrics["t/verdict"] == "non-inferior (margin 20 BLEU)"  # of 20 unchanged texts, 16.8 may be missed
    assert f"tok:{'zh' if target == 'zh' else '13a'}" in str(metrics["t/signature"])


def test_the_code_of_a_language_chooses_the_pinned_column_and_the_tokenizer() -> None:
    plain = Translation(source="en", target="zh", limit=5)
    flores = Translation(source="eng_Latn", target="zho_Hans", limit=5)
    assert flores._pairs() == plain._pairs()
    assert flores.prompts() == plain.prompts()
    with pytest.raises(ValueError, match="target=zh-CN is the source language"):
        Translation(source="zh", target="zh-CN")


def test_translation_at_the_floor_concludes_nothing() -> None:
    outputs = {"texts": np.array(["", "la", "", "", "!"]), "reference_log_probs": np.zeros(5)}
    metrics = Translation(limit=5, judged_by="bleu").compare("t", outputs, outputs).metrics
    assert str(metrics["t/verdict"]).startswith("inconclusive (baseline BLEU 0.0 is at the floor")
    metrics = Translation(limit=5).compare("t", outputs, outputs).metrics
    assert metrics["t/verdict"] == "inconclusive (3 of 5 baseline answers are empty)"


@pytest.mark.parametrize("task", [Translation(limit=20, generate=None), Summarization(limit=20, generate=None)])
def test_the_likelihood_of_references_decides_where_texts_say_nothing(task: Translation | Summarization) -> None:
    rng = np.random.default_rng(1)
    likely = rng.normal(-2, 0.3, size=20)
    before = {"texts": np.array(["a b"] * 20), "reference_log_probs": likely, "vocabulary": np.array([100])}
    for loss, word in ((0.0, "non-inferior"), (0.2, "worse")):
        after = {**before, "reference_log_probs": likely - loss + rng.normal(0, 0.02, size=20)}
        report = task.compare("t", before, after)
        assert report.scores[0].name == "reference perplexity"
        assert report.scores[0].word == word
        assert report.scores[1].verdict == ""
        assert len(report.samples) == 20


def test_a_last_word_that_rounding_may_change_is_noise(tmp_path: Path) -> None:
    rows = [{"text": f"a text that ends in {word}"} for word in string.ascii_lowercase[:20]]
    own = LastWord(path=str(shapes.written(tmp_path, "lambada", rows)))
    model, quantized = FakeModel(), FakeModel(noise=0.01)
    before = own.evaluate(model, None, silent)
    after = own.evaluate(quantized, Reference(before, model.log_probs), silent)
    assert np.array_equal(after["right"], after["leads"] > 0)
    assert after["lead_moves"].shape == after["moves"].shape == (5,)
    leads, lead_moves = np.where(np.arange(20) < 5, 0.001, -3.0), np.full(5, 0.01)
    accuracy, word = own.compare("t", before, after | {"leads": leads, "lead_moves": lead_moves}).scores
    assert accuracy.noise == 0.25
    assert word.noise is not None


def test_an_answer_that_rounding_may_change_is_noise() -> None:
    own = MultipleChoice(data="mmlu", limit=20, judged_by="accuracy")
    questions = own._questions()
    scores = np.concatenate([[0.0, -0.001, -9, -9] if i < 5 else [0.0, -3, -9, -9] for i in range(20)])
    outputs = {"log_probs": scores, "moves": np.full(20, 0.01)}
    assert [len(item.options) for item in questions] == [4] * 20
    report = own.compare("mc", outputs, outputs)
    assert (report.scores[0].noise, report.metrics["mc/noise"]) == (0.25, 0.25)
    by_likelihood = MultipleChoice(data="mmlu", limit=20).compare("mc", outputs, outputs).scores
    assert by_likelihood[1].noise == 0.25
    assert by_likelihood[0].noise == pytest.approx(0.0, abs=1e-3)


def test_the_probability_of_the_answer_moves_before_answers_flip(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"question": f"q{i}", "options": ["no", "yes"], "answer": i % 2} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own, lead = MultipleChoice(path=str(path), limit=40), np.random.default_rng(0).uniform(1, 3, size=40)
    right = np.tile(np.eye(2), (20, 1))  # the first option, then the second
    sides = [{"log_probs": (scale * lead[:, None] * right).ravel()} for scale in (1, 0.2)]
    [own_row, accuracy] = own.compare("mc", *sides).scores
    assert own_row.float_value == pytest.approx(float((1 / (1 + np.exp(-lead))).mean()))
    assert (own_row.word, accuracy.verdict, accuracy.difference) == ("worse", "", 0)
    guesses = {"log_probs": np.zeros(80)}
    assert (
        own.compare("mc", guesses, guesses).scores[0].verdict
        == "inconclusive (baseline 0.50 is not above chance, 0.50)"
    )
