"""Windows of a text, and what they count for: those of one document are one observation."""

from pathlib import Path

import numpy as np
import pytest

from slimrun.evaluation import statistics, windows
from slimrun.evaluation.base import Reference
from slimrun.evaluation.metric import fidelity
from slimrun.evaluation.task.perplexity import Perplexity
from tests.evaluation.fake import FakeModel, silent


def encode(text: str) -> list[int]:
    return list(text.encode())


def test_windows_are_spread_over_the_text_and_know_their_document() -> None:
    parts = ["a" * 100, "b" * 50, "c" * 250]
    cut = windows.spread(encode, "".join(parts), parts, size=10, limit=8)
    assert cut.ids.shape == (8, 10)
    assert cut.ids[:, 0].tolist() == [*encode("aa"), *encode("b"), *encode("ccccc")]
    assert cut.documents.tolist() == [0, 0, 1, 2, 2, 2, 2, 2]
    everything = windows.spread(encode, "".join(parts), parts, size=10, limit=99)
    assert np.bincount(everything.documents).tolist() == [10, 5, 25]


@pytest.mark.parametrize(
    ("text", "beginning", "expected"),
    [
        ("one\ntwo\n\nthree\n\n\nfour", None, ["one\ntwo\n\n", "three\n\n\n", "four"]),
        ("<doc id=1>\na\n\nb\n</doc>\n<doc id=2>\nc\n</doc>", None, 2),
        (" = Title = \n\n = = Part = = \n\ntext\n\n = Other = \n\ntext", r"^ = [^=].*[^=] = $", 2),
        ("no mark at all", None, ["no mark at all"]),
    ],
)
def test_documents_are_told_by_their_marks(text: str, beginning: str | None, expected: object) -> None:
    documents = windows.documents(text, beginning)
    assert "".join(documents) == text
    assert documents == expected or len(documents) == expected


def test_paragraphs_that_may_be_taken_for_documents_are_told(tmp_path: Path) -> None:
    path, line = tmp_path / "novel.txt", "A paragraph of one long story. "
    path.write_text("\n\n".join([line] * 40))
    [_, note] = Perplexity(path=str(path), window=60).fit(FakeModel())
    assert note.startswith(f"path={path}: its 40 documents, each of which counts for itself, are shorter than a window")
    for text, document in (
        ("\n\n".join([line] * 40), "^Chapter"),
        ("\n\n".join([line * 4] * 40), None),
        ("\n\n".join([f"<doc>\n\n{line}"] * 40), None),
        (line * 40, None),
    ):
        path.write_text(text)
        assert not Perplexity(path=str(path), window=60, windows=8, document=document).fit(FakeModel())


def test_windows_of_one_document_are_one_observation() -> None:
    rng = np.random.default_rng(0)
    of_document = rng.normal(size=8)
    clusters = np.repeat(np.arange(8), 50)
    alike = of_document[clusters] + 1e-3 * rng.normal(size=400)
    honest, naive = statistics.clustered_mean(alike, clusters), statistics.mean(alike)
    by_document = statistics.mean(np.array([alike[clusters == i].mean() for i in range(8)]))
    assert (honest.low, honest.high) == pytest.approx((by_document.low, by_document.high))
    assert honest.high - honest.low > 5 * (naive.high - naive.low)
    assert honest.value == pytest.approx(float(alike.mean()))
    few = statistics.clustered_mean(alike[:100], clusters[:100])
    assert few.doubt == "2 documents; 12 are the least"


@pytest.mark.parametrize("count", [10, 30])
def test_the_interval_of_windows_misses_as_often_as_it_says(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rng = np.random.default_rng(count)
    missed = {"by document": 0, "by window": 0}
    for _ in range(300):
        clusters = np.repeat(np.arange(count), rng.integers(1, 10, size=count))
        values = rng.normal(size=count)[clusters] + rng.normal(size=len(clusters))
        for name, own in (("by document", clusters), ("by window", None)):
            change = statistics.clustered_mean(values, own)
            missed[name] += not change.low <= 0 <= change.high
    assert missed["by document"] / 300 <= 0.09, "5 %, with a standard error of 1.3"
    assert missed["by window"] / 300 >= 0.15


def test_a_text_of_one_document_gives_no_verdict(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("abcdefghij" * 70)
    task, model, other = Perplexity(path=str(path), window=20), FakeModel(), FakeModel(noise=0.5)
    before = task.evaluate(model, None, silent)
    report = task.compare("perplexity", before, task.evaluate(other, Reference(before, model.log_probs), silent))
    assert report.scores[0].verdict == "too few to say (1 document; 12 are the least)"
    assert len(report.samples) == 32


def test_kl_from_what_is_kept_is_that_of_both_heads() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(500, 16)).astype(np.float32)
    states = 2 * rng.normal(size=(300, 16)).astype(np.float32)
    moved = states + 0.3 * rng.normal(size=states.shape).astype(np.float32)
    targets = rng.integers(0, 500, size=300)

    def head(hidden: np.ndarray) -> np.ndarray:
        logits = hidden @ rows.T
        logits = logits - logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    kept = fidelity.kept_of(targets, states, head, rows)
    one = fidelity.divergence(targets, moved, head, kept, head, same_head=True)
    both = fidelity.divergence(targets, moved, head, kept, head, same_head=False)
    assert np.abs(one["kl"] - both["kl"]).max() < 5e-5
    assert abs(one["kl"].mean() - both["kl"].mean()) < 5e-6
    assert both["kl"].mean() > 0.1
    itself = fidelity.divergence(targets, states, head, kept, head, same_head=True)
    assert not itself["kl"].any()
    assert (one["agree"] == both["agree"]).all()
    assert (one["log_probs"] == both["log_probs"]).all()
