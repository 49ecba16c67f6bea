"""What every task must do, for every yaml in conf/task, and what is particular to each."""

import dataclasses
import importlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from slimrun.evaluation.base import PATHS as PATH_KEYS
from slimrun.evaluation.base import Outputs, Reference, Task
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.task.exact_match import ExactMatch
from slimrun.evaluation.task.last_word import LastWord
from slimrun.evaluation.task.multiple_choice import MultipleChoice
from slimrun.evaluation.task.perplexity import Perplexity
from slimrun.evaluation.task.summarization import Summarization
from slimrun.evaluation.task.translation import Translation
from tests.evaluation import shapes
from tests.evaluation.fake import FakeModel, silent

CONF = Path(__file__).parents[2] / "conf" / "task"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SMALLER = {"windows": 3, "window": 64, "limit": 5, "max_new_tokens": 6, "batch": 2, "shots": 0, "too_long": "refuse"}


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The small files that stand in for what the yamls would fetch."""
    folder = tmp_path_factory.mktemp("shapes")
    PATHS.update({name: str(shapes.written(folder, name)) for name in shapes.SHAPES})


PATHS: dict[str, str] = {}


def keys_of(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))  # type: ignore[return-value]


def kind_of(name: str) -> type:
    module, _, attribute = keys_of(name)["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]


def small(name: str, **changes: Any) -> Task:
    keys = {key: value for key, value in keys_of(name).items() if key != "_target_"}
    smaller: dict[str, Any] = {key: value for key, value in SMALLER.items() if key in keys}
    if keys.get("hub"):
        keys["hub"] = Hub(**{key: value for key, value in keys["hub"].items() if key != "_target_"})
    if name in PATHS:
        smaller["path"] = PATHS[name]
    return kind_of(name)(**keys | smaller | changes)  # type: ignore[no-any-return]


def saved(outputs: Outputs, folder: Path) -> Outputs:
    np.savez(folder / "outputs.npz", **outputs)  # type: ignore[arg-type]
    with np.load(folder / "outputs.npz", allow_pickle=False) as archive:
        return dict(archive)


@pytest.mark.parametrize("name", NAMES)
def test_yaml_is_the_constructor(name: str) -> None:
    keys, kind = keys_of(name), kind_of(name)
    text = (CONF / f"{name}.yaml").read_text("utf-8")
    assert text.startswith(f"# @package task.{name}\n")
    assert next(iter(keys)) == "_target_"
    assert set(keys) - {"_target_"} == {field.name for field in dataclasses.fields(kind)}
    assert all(" # " in line for line in text.splitlines()[3:]), "every key has a comment"
    given = {key: value for key, value in keys.items() if key not in ("_target_", "hub")}
    OmegaConf.merge(OmegaConf.structured(kind), given)
    if keys.get("hub"):
        assert set(keys["hub"]) - {"_target_"} == {field.name for field in dataclasses.fields(Hub)}
    if kind.__module__.rpartition(".")[2] == name:
        assert kind(**{key: value for key, value in keys.items() if key != "_target_"}) == kind()


@pytest.mark.parametrize("name", NAMES)
def test_equal_models_differ_in_nothing(name: str, tmp_path: Path) -> None:
    task, model = small(name), FakeModel()
    task.check()
    assert all(isinstance(part, str) and part for part in task.texts())
    before = saved(task.evaluate(model, None, silent), tmp_path)
    after = saved(task.evaluate(model, Reference(before, model.log_probs), silent), tmp_path)
    report = task.compare(name, before, after)
    assert all(key.startswith((f"{name}/", "fidelity")) for key in report.metrics)
    assert all(math.isfinite(value) for value in report.metrics.values() if not isinstance(value, str))
    for key, value in report.metrics.items():
        if key.endswith("_float"):
            assert value == report.metrics[key.replace("_float", "_quant")], key
    assert report.metrics.get(f"{name}/p_value", 1) == 1
    assert report.scores[0].word in ("inconclusive", "too few to say"), "a handful of answers of a model that guesses"
    assert report.metrics[f"{name}/signature"]
    for score in report.scores:
        assert score.float_value == score.quant_value
        if score.float_interval:
            assert score.float_interval[0] <= score.float_value + 1e-9
            assert score.float_value <= score.float_interval[1] + 1e-9
        assert score.float_interval == score.quant_interval
        assert score.difference == 0
        assert score.p_value in (None, 1)
        assert score.interval is None or score.interval[0] <= 0 <= score.interval[1]
    assert [bool(score.verdict) for score in report.scores] == [True] + [False] * (len(report.scores) - 1)
    numbers = ["document", "KL", "same top token"] if isinstance(task, Perplexity) else []
    for sample in report.samples:
        assert list(sample) == ["input", "reference", "float", "quantized", *numbers]


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_model_is_seen_and_results_repeat(name: str) -> None:
    task, model, other = small(name), FakeModel(), FakeModel(noise=0.5)
    before = task.evaluate(model, None, silent)
    runs = [task.evaluate(other, Reference(before, model.log_probs), silent) for _ in range(2)]
    reports = [task.compare(name, before, run) for run in runs]
    assert reports[0] == reports[1]
    assert any(not np.array_equal(before[key], runs[0][key]) for key in before if key in runs[0])


@pytest.mark.parametrize("name", NAMES)
def test_protocol_names_what_changes_outputs(name: str) -> None:
    base = small(name)
    assert json.loads(base.protocol())["sha256"]
    assert base.protocol() == small(name).protocol()
    for key, value in {"window": 65, "windows": 4, "limit": 6, "max_new_tokens": 7, "batch": 3}.items():
        if hasattr(base, key):
            assert small(name, **{key: value}).protocol() != base.protocol(), key
    if hasattr(base, "prompt"):
        assert small(name, prompt=base.prompt + " ").protocol() != base.protocol()
    for key in ("margin_pct", "margin_points"):
        if hasattr(base, key):
            assert small(name, **{key: 9.0}).protocol() == base.protocol(), key


def test_protocol_changes_with_the_bytes_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    protocols = set()
    for data in ("a b c", "a b d"):
        path.write_text(data)
        protocols.add(Perplexity(path=str(path)).protocol())
    assert len(protocols) == 2


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Perplexity, {"windows": 0}, r"windows=0 is out of range; allowed: 1 or more"),
        (Perplexity, {"window": 1}, r"window=1 is out of range; allowed: 2 or more"),
        (Perplexity, {"margin_pct": -1.0}, r"margin_pct=-1.0 is out of range"),
        (Perplexity, {"margin_pct": math.nan}, r"margin_pct=nan is out of range"),
        (MultipleChoice, {"data": "mmul"}, r"data=mmul is unknown; allowed: arc_easy, socialiqa, mmlu"),
        (
            MultipleChoice,
            {"prompt": "Q: {question}"},
            r"prompt=.* holds no column; write \{\{ question \}\} instead of",
        ),
        (MultipleChoice, {"prompt": "{{ question"}, r"prompt=.* is no template \(.*; write columns as \{\{ question"),
        (MultipleChoice, {"options": 3}, r"options=3 is neither a template of a list nor a list of templates"),
        (ExactMatch, {"extract": "("}, r"extract='\(' is no pattern \("),
        (ExactMatch, {"stop": [""]}, r"stop=\[''\] is out of range; allowed: a list of texts, none of them empty"),
        (ExactMatch, {"stop": "Question:"}, r"stop=Question: is out of range; allowed: a list of texts"),
        (LastWord, {"limit": 0}, r"limit=0 is out of range"),
        (Translation, {"target_path": "b.txt"}, r"target_path=b.txt is the second of two files; give the first"),
        (Summarization, {"max_new_tokens": 0}, r"max_new_tokens=0 is out of range"),
        (Translation, {"target": "fr"}, r"target=fr is the source language"),
        (Translation, {"target": "xx"}, r"target=xx is unknown; allowed: en, fr"),
        (Translation, {"tokenizer": "moses"}, r"tokenizer=moses is unknown; allowed: 13a"),
    ],
)
def test_refused_settings(kind: type, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        kind(**changes)


def test_check_names_what_is_wrong_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "q", "options": ["a", "b"], "answer": 2}\n')
    with pytest.raises(ValueError, match=r"^path=.*, line 1: answer 2 is out of range; allowed: 0 to 1"):
        MultipleChoice(path=str(path), limit=1).check()
    with pytest.raises(ValueError, match=r"^path=.* cannot be read"):
        Summarization(path=str(tmp_path / "absent.jsonl")).check()
    with pytest.raises(ValueError, match=r"^tokenizer=13a cannot score text with 9\d% Chinese"):
        Translation(target="zh", tokenizer="13a").check()


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_path_is_refused_and_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("a\n")
    needs: dict[str, dict[str, Any]] = {"shots_path": {"shots": 1}, "target_path": {"path": str(tmp_path / "own.txt")}}
    for key in keys_of(name).keys() & set(PATH_KEYS):
        with pytest.raises(ValueError, match=rf"^{key}= is empty; allowed: a readable file, or null for none$"):
            small(name, **needs.get(key, {}), **{key: ""}).check()


def test_own_text_is_cut_into_windows(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("abcdefghij" * 10)
    model = FakeModel()
    outputs = Perplexity(path=str(path), windows=9, window=30, batch=2).evaluate(model, None, silent)
    assert outputs["log_probs"].shape == (3, 29)  # 100 bytes hold three whole windows
    assert model.calls == [(2, 30), (2, 30)]  # one shape, the last batch filled up
    model = FakeModel()
    outputs = Perplexity(path=str(path), windows=9, window=30, batch=99_999_999).evaluate(model, None, silent)
    assert outputs["log_probs"].shape == (3, 29)
    assert model.calls == [(3, 30)]  # a batch larger than all is all of them
    with pytest.raises(ValueError, match=r"^window=101 is out of range; allowed: 2 to 100, the tokens of the text"):
        Perplexity(path=str(path), window=101).evaluate(model, None, silent)
    with pytest.raises(ValueError, match=r"^window=101 is out of range; allowed: 2 to 64, the model's context"):
        Perplexity(path=str(path), window=101).evaluate(FakeModel(context=64), None, silent)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_into_the_context_is_refused_before_the_model_runs(name: str) -> None:
    task, longest = small(name), 8192
    assert task.fit(FakeModel(context=longest)) == []
    refused = {}
    for context in (10, 50, 100, 500, 1000, 2000, 4000):
        model = FakeModel(context=context)
        try:
            task.fit(model)
            task.evaluate(model, None, silent)
        except ValueError as error:
            refused[context] = str(error)
        assert all(tokens <= context for _, tokens in model.calls)
    assert 10 in refused
    assert 4000 not in refused
    for context, message in refused.items():
        key, numbers = re.match(r"(\w+)[:=]", message), [int(number) for number in re.findall(r"-?\d+", message)]
        assert key is not None
        assert hasattr(task, key[1]), message
        assert context in numbers
        assert min(numbers) > 0
    with pytest.raises(ValueError, match=r"^(prompt|path|text|target=\w+): the tokenizer makes no"):
        task.fit(Speechless())


class Speechless(FakeModel):
    def encode(self, text: str) -> list[int]:
        return []

    def encode_prompt(self, text: str, system: str = "") -> list[int]:
        return []


def test_fewer_windows_than_asked_for_are_said(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("abcdefghij" * 10)
    assert Perplexity(path=str(path), windows=3, window=30).fit(FakeModel()) == []
    [note] = Perplexity(path=str(path), windows=9, window=30).fit(FakeModel())
    assert note == "windows=9 asked for, the text gives 3"


@pytest.mark.parametrize("name", ["summarization", "translation", "multiple_choice"])
def test_a_date_that_stands_in_the_prompts_stands_in_the_signature(name: str) -> None:
    task, model = small(name, chat=True), FakeModel()
    undated = task.evaluate(model, None, silent)
    model.prompt_date = "2001-02-03"
    dated = task.evaluate(model, None, silent)
    signatures = [str(task.compare(name, side, side).metrics[f"{name}/signature"]) for side in (undated, dated)]
    assert "date:" not in signatures[0]
    assert signatures[0] == signatures[1].replace("|date:2001-02-03|", "|")
    assert "date" not in small(name, chat=False).evaluate(model, None, silent), "of prompts of another task"


def signature(name: str, **changes: Any) -> str:
    task, model = small(name, **changes), FakeModel()
    outputs = task.evaluate(model, None, silent)
    return str(task.compare(name, outputs, outputs).metrics[f"{name}/signature"])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("perplexity", {"text": "{{ text }}."}),
        ("multiple_choice", {"answer": "{{ 3 - answer }}"}),
        ("lambada", {"limit": 4}),
        ("summarization", {"text": "{{ text }}."}),
        ("summarization", {"reference": "{{ summary }}."}),
        ("translation", {"limit": 4}),
    ],
)
def test_a_signature_tells_apart_what_was_not_measured_alike(name: str, changes: dict[str, Any]) -> None:
    assert signature(name) != signature(name, **changes)


def test_a_signature_tells_apart_examples_and_target_files(tmp_path: Path) -> None:
    for name, other in {"mmlu": {"shots_by": None}, "gsm8k": {"example": "{{ question }}"}}.items():
        own = {"shots": 1, "shots_path": str(shapes.examples(tmp_path, name))}
        given = (own, own | other, own | {"shots_path": PATHS[name]})
        assert len({signature(name, **keys) for keys in given}) == 3, name
    for language, lines in zip(("zh", "en", "xx"), (*shapes.LINES, shapes.LINES[1].upper())):
        (tmp_path / language).write_text(lines, "utf-8")
    zh, en, xx = (str(tmp_path / language) for language in ("zh", "en", "xx"))
    plain = {"path": zh, "source": "zh", "target": "en"}
    assert signature("translation", target_path=en, **plain) != signature("translation", target_path=xx, **plain)
