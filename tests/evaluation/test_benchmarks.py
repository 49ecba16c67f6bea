"""Benchmarks that are a yaml alone: what is asked, what counts as right, and what a wrong template or file gives."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimrun.evaluation.base import Task
from slimrun.evaluation.source import hub
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.task import exact_match
from slimrun.evaluation.task.exact_match import ExactMatch
from slimrun.evaluation.task.last_word import LastWord
from slimrun.evaluation.task.multiple_choice import MultipleChoice
from slimrun.evaluation.task.perplexity import Perplexity
from slimrun.evaluation.task.summarization import Summarization
from slimrun.evaluation.task.translation import Translation
from tests.evaluation import shapes, test_gate, test_tasks
from tests.evaluation.fake import FakeModel, silent


def task(name: str, folder: Path, **changes: Any) -> Any:
    """The yaml of a benchmark on the small file of its shape."""
    keys = test_tasks.keys_of(name)
    kind = test_tasks.kind_of(name)
    given = {key: value for key, value in keys.items() if key not in ("_target_", "hub")}
    limit = {"limit": 4} if "limit" in given else {}
    return kind(**given | {"path": str(shapes.written(folder, name))} | limit | changes)


ASKED = {  # the second item of four, evenly over six, with what is scored and which option is right
    "ceval": ("第1题：一加1等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案：", [" A", " B", " C", " D"], 1),
    "cmmlu": ("第1题：一加1等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案：", [" A", " B", " C", " D"], 1),
    "mmlu": ("What is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", [" A", " B", " C", " D"], 1),
    "boolq": ("The number 1.\nQuestion: is 1 even?\nAnswer:", [" no", " yes"], 0),
    "arc": ("Question: Which is the metal, 1?\nAnswer:", [" wood", " iron", " wool"], 1),
    "hellaswag": ("Cooking: A man cooks 1 eggs. He", [" eats them.", " flies away.", " sings.", " sleeps."], 0),
    "winogrande": ("Ann thanked Eve 1 times because Ann", [" had helped.", " had helped."], 1),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_a_multiple_choice_asks(name: str, tmp_path: Path) -> None:
    question = task(name, tmp_path, shots=0, description="")._questions()[1]
    assert (question.prompts[0], question.continuations, question.answer) == ASKED[name]


def test_examples_stand_before_the_question(tmp_path: Path) -> None:
    own = task("mmlu", tmp_path, shots=2, shots_path=str(shapes.examples(tmp_path, "mmlu")))
    described, *asked = own._questions()[1].prompts[0].split("\n\n")
    assert described == "The following are multiple choice questions (with answers) about s1."
    assert own.protocol() != task("mmlu", tmp_path, shots=2, shots_path=own.shots_path, description="").protocol()
    with pytest.raises(ValueError, match=r"row 1: description: 'topic' is undefined; it has question"):
        task("mmlu", tmp_path, shots=0, description="{{ topic }}").check()
    shown = ["Before: What is 1 + 1?", "Before: What is 3 + 1?"]
    assert [text.splitlines()[0] for text in asked] == [*shown, "What is 1 + 1?"], "of its subject"
    assert [text.splitlines()[-1] for text in asked] == ["Answer: B", "Answer: B", "Answer:"]
    assert own.texts() == task("mmlu", tmp_path, shots=0).texts()
    assert own.protocol() != task("mmlu", tmp_path, shots=1, shots_path=own.shots_path).protocol()
    with pytest.raises(ValueError, match=r"^shots=4 is out of range; allowed: 0 to 3, the examples there are"):
        task("mmlu", tmp_path, shots=4, shots_path=own.shots_path).check()
    with pytest.raises(ValueError, match=r"^shots=5 needs examples: allowed: shots_path=FILE, or hub.shots_split"):
        task("cmmlu", tmp_path).check()
    sums = task("gsm8k", tmp_path, shots=1, shots_path=str(shapes.examples(tmp_path, "gsm8k")))
    assert sums._problems()[1].prompt == (
        "Question: Before: Ann has 0 eggs and gets 1000 more.\nAnswer: 0 + 1000\n#### 1,000\n\n"
        "Question: Ann has 1 eggs and gets 1000 more.\nAnswer:"
    )


def test_an_item_is_no_example_of_itself(tmp_path: Path) -> None:
    same = str(shapes.written(tmp_path, "mmlu"))
    own = task("mmlu", tmp_path, shots=2, shots_path=same, description="", limit=6)
    asked = [[text[8] for text in question.prompts[0].split("\n\n")] for question in own._questions()]
    assert asked == [list(numbers) for numbers in ("240", "351", "042", "153", "024", "135")]
    with pytest.raises(ValueError, match=r"^shots=3 .*; allowed: 0 to 2, the examples there are of subject=s0 beside"):
        task("mmlu", tmp_path, shots=3, shots_path=same).check()
    same = str(shapes.written(tmp_path, "gsm8k"))
    sums = task("gsm8k", tmp_path, shots=5, shots_path=same, limit=6)._problems()
    assert [problem.prompt.count(f"Ann has {i} eggs") for i, problem in enumerate(sums)] == [1] * 6
    with pytest.raises(
        ValueError, match=r"^shots=6 .*; allowed: 0 to 5, the examples there are beside the item itself"
    ):
        task("gsm8k", tmp_path, shots=6, shots_path=same).check()
    with pytest.raises(
        ValueError, match=r"^shots_by=topic is no column of path=.*, row 1; allowed: question, subject, "
    ):
        task("mmlu", tmp_path, shots=1, shots_path=str(shapes.examples(tmp_path, "mmlu")), shots_by="topic").check()


def test_winogrande_scores_the_rest_after_each_name(tmp_path: Path) -> None:
    own, model = task("winogrande", tmp_path, limit=1), FakeModel()
    [question] = own._questions()
    assert question.prompts == ["Ann thanked Eve 0 times because Ann", "Ann thanked Eve 0 times because Eve"]
    by_hand = [
        float(model.continuations(model.encode(before), [model.encode(" had helped.")])[0].sum(dtype=np.float64))
        for before in question.prompts
    ]
    assert own.evaluate(model, None, silent)["log_probs"].tolist() == by_hand


def test_the_last_word_is_scored_whole(tmp_path: Path) -> None:
    own, model = task("lambada", tmp_path, limit=2), FakeModel()
    assert own._pairs()[0] == ("The cat saw 0 mice, and soon there was no", " mouse")
    outputs = own.evaluate(model, None, silent)
    [scores] = model.continuations(model.encode(own._pairs()[0][0]), [model.encode(" mouse")])
    assert outputs["log_probs"][0] == pytest.approx(float(scores.sum()), rel=1e-6)
    certain = {"log_probs": np.zeros(2), "right": np.ones(2, np.bool_)}
    report = own.compare("lambada", certain, {**certain, "right": np.array([True, False])})
    assert (report.metrics["lambada/accuracy_quant"], report.scores[1].float_value) == (0.5, 1)
    assert [sample["quantized"] for sample in report.samples] == ["another word", "the word"]
    with pytest.raises(ValueError, match=r"line 1: text has no two words"):
        LastWord(path=str(shapes.written(tmp_path, "lambada", [{"text": "one"}]))).check()


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("It is 1,000.", True),
        ("so 7 and 5, hence 1000.00", True),
        ("1000\nQuestion: what of 3?", True),
        ("1000 or 1001", False),
        ("none", False),
        ("", False),
    ],
)
def test_the_last_number_of_an_answer_counts(text: str, right: bool, tmp_path: Path) -> None:
    own = task("gsm8k", tmp_path, limit=1, shots=0)
    assert own._right(text, own._problems()[0].answers) == right


def test_any_of_several_answers_is_right(tmp_path: Path) -> None:
    path = shapes.written(tmp_path, "gsm8k", [{"question": "q", "answer": ["a man", "one man"]}])
    own = ExactMatch(path=str(path), ignore="[.]")
    assert own._problems()[0].answers == ["a man", "one man"]
    assert own._right(" one man. ", ["a man", "one man"])


def test_what_is_ignored_is_no_answer(tmp_path: Path) -> None:
    path = str(shapes.written(tmp_path, "gsm8k", [{"question": "q", "answer": ["none", "0"]}]))
    own = ExactMatch(path=path, ignore=r"[^\d]")
    assert not own._right("I do not know", own._problems()[0].answers)
    assert own._right("It is 0.", own._problems()[0].answers)
    with pytest.raises(ValueError, match=r"line 1: answer 'none' is empty without what ignore=\[\^\\d\] leaves out"):
        ExactMatch(path=path, ignore=r"[^\d]", answer="{{ answer[0] }}").check()


def test_several_references(tmp_path: Path) -> None:
    path = str(shapes.written(tmp_path, "boolq", [{"text": "a", "refs": ["one two", "two one"]}]))
    assert Summarization(path=path, limit=1, reference="{{ refs }}")._pairs()[0][1] == ["one two", "two one"]
    assert Translation(path=path, limit=1, text="{{ text }}", reference="{{ refs }}")._pairs()[0][1][1] == "two one"


@pytest.mark.parametrize(("name", "source", "target"), [("wmt_zhen", 0, 1), ("wmt_enzh", 1, 0)])
def test_two_text_files_are_a_translation(name: str, source: int, target: int, tmp_path: Path) -> None:
    for language, lines in zip(("zh", "en"), shapes.LINES):
        (tmp_path / f"lines.{language}").write_text(lines, "utf-8")
    paths = [str(tmp_path / f"lines.{language}") for language in ("zh", "en")]
    plain = {"text": "{{ source }}", "reference": "{{ target }}"}
    files = task(name, tmp_path, path=paths[source], target_path=paths[target], **plain)
    assert files._pairs() == task(name, tmp_path)._pairs()


def test_a_template_may_leave_everything_out(tmp_path: Path) -> None:
    own = task("wmt_zhen", tmp_path, prompt="翻译：{{ text }}")
    assert own.evaluate(FakeModel(), None, silent)["texts"].shape == (4,)
    assert Summarization(prompt="{{ text }} In a word:", limit=2).check() is None


def test_a_table_is_no_text_for_perplexity(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text('id,body\n1,"words, of a text"\n2,and more\n')
    assert Perplexity(path=str(path), text="{{ body }}").texts() == ["words, of a text", "and more"]
    with pytest.raises(ValueError, match=r"^path=.*own.csv, line 2: text: 'text' is undefined; it has id, body"):
        Perplexity(path=str(path)).check()
    assert task("wikitext2", tmp_path).texts()[0].startswith(" = Head = \n\nwords of")


OF_NOBODY = Hub("nobody/nothing")


@pytest.mark.parametrize("own", [MultipleChoice(hub=OF_NOBODY), Perplexity(hub=OF_NOBODY), LastWord(hub=OF_NOBODY)])
def test_the_hub_that_is_away_is_one_line(own: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    hub._rows.cache_clear()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"^hub.id=nobody/nothing needs the library datasets: pip install 'slimrun"):
        own.check()

    class Away:
        @staticmethod
        def load_dataset(*_: object, **__: object) -> None:
            raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", Away)
    with pytest.raises(ValueError, match=r"^hub.id=nobody/nothing cannot be had \(no route to host\)") as refused:
        own.check()
    assert all(way in str(refused.value) for way in ("HF_ENDPOINT", "modelscope download", "path=FILE"))
    assert "\n" not in str(refused.value)


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = shapes.SHAPES["arc"][1]
    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(name: str, subset: str | None, *, split: str, revision: str | None) -> list[dict[str, Any]]:
            asked.append((name, subset, split, revision))
            return rows

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    hub._rows.cache_clear()
    keys = {key: value for key, value in test_tasks.keys_of("arc").items() if key != "_target_"}
    named = {key: value for key, value in keys["hub"].items() if key != "_target_"}
    own = MultipleChoice(**keys | {"hub": Hub(**named), "limit": 4})
    assert own._questions() == task("arc", tmp_path)._questions()
    assert set(asked) == {("allenai/ai2_arc", "ARC-Challenge", "test", named["revision"])}
    assert '"revision": "210d026f' in own.protocol()
    hub._rows.cache_clear()


def test_a_task_without_any_items_says_so() -> None:
    with pytest.raises(ValueError, match=r"^path=null names no items, and the task brings none; allowed: a file, or"):
        MultipleChoice(data=None).check()


def test_empty_and_cut_answers_are_counted() -> None:
    whole = {"texts": np.array(["a b", "c"] * 10), "cut": np.zeros(20, np.bool_), "reference_log_probs": np.zeros(20)}
    flawed = {**whole, "texts": np.array(["a b", ""] * 10), "cut": np.arange(20) < 5}
    for own in (Summarization(limit=20, generate=None), Translation(limit=20, generate=None)):
        rows = {row.name: row for row in own.compare("t", whole, flawed).scores}
        assert rows["empty answers, share"].quant_value == 0.5
        assert (rows["cut answers, share"].float_value, rows["cut answers, share"].quant_value) == (0, 0.25)
        assert not any("share" in row.name for row in own.compare("t", whole, whole).scores)
    model = FakeModel()
    assert Summarization(limit=2, max_new_tokens=1).evaluate(model, None, silent)["cut"].tolist() == [True, True]


@pytest.mark.parametrize("name", ["multiple_choice", "lambada", "translation"])
def test_what_is_no_number_is_no_answer(name: str) -> None:
    key = "reference_log_probs" if name == "translation" else "log_probs"
    broken = {key: np.array([0.0, np.nan]), "right": np.zeros(2), "texts": np.array(["", ""])}
    kind = test_tasks.kind_of(name)
    with pytest.raises(ArithmeticError, match=rf"^{name}: 1 of 2 log-probabilities of the float model are no finite"):
        kind(limit=2).compare(name, broken, broken)


def test_what_rounding_moves_stands_beside_the_difference() -> None:
    own, model, other = Perplexity(windows=12, window=40), FakeModel(), FakeModel(0.5)
    before = own.evaluate(model, None, silent)
    assert "moves" not in before
    rows = {}
    for chaos in (1e-6, 1e-2):
        other.chaos = chaos
        after = own.evaluate(other, test_tasks.Reference(before, model.log_probs), silent)
        assert after["moves"].shape == (2,)
        rows[chaos] = own.compare("perplexity", before, after)
    small, large = (rows[chaos].scores[0] for chaos in (1e-6, 1e-2))
    assert small.noise is not None
    assert large.noise is not None
    assert 0 < 1000 * small.noise < large.noise
    assert rows[1e-2].metrics["perplexity/noise_pct"] == large.noise
    assert not small.within_noise
    assert test_gate.row("t", -1, 1.2).__class__(**{**vars(large), "difference": large.noise / 2}).within_noise


def test_a_pattern_that_never_ends_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_match, "SECONDS", 0.01)
    task = ExactMatch(path=str(tmp_path / "unread"), extract="(a|a)+$")
    with pytest.raises(ArithmeticError, match=r"extract=\(a\|a\)\+\$ or ignore=None takes more than 0\.01 s"):
        task._right("a" * 40 + "b", ["b"])


def test_where_examples_lie_changes_nothing(tmp_path: Path) -> None:
    told = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in ("items.jsonl", "shots.jsonl"):
            (tmp_path / name / file).write_text('{"question": "1+1", "answer": "2"}\n')
        paths = {"path": str(tmp_path / name / "items.jsonl"), "shots_path": str(tmp_path / name / "shots.jsonl")}
        told.append(ExactMatch(**paths, shots=1).protocol())
    assert told[0] == told[1]
