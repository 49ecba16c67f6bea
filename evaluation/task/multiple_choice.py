"""Multiple choice by likelihood: the answer is the option the model finds most likely after the question."""

import string
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimrun.evaluation import prompt
from slimrun.evaluation.base import LanguageModel, Outputs, Progress, Reader, Reference, at_least, one_of, protocol_of
from slimrun.evaluation.comparison import SAMPLES, Report
from slimrun.evaluation.metric.accuracy import accuracy, at_chance
from slimrun.evaluation.source import items
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.source.table import Row
from slimrun.evaluation.statistics import Values

PINNED = ("mmlu", "socialiqa", "parables")
Tokens = list[int]


@dataclass(frozen=True)
class Question:
    """An item as the model is asked it: of every option what stands before it and what is scored."""

    prompts: list[str]
    continuations: list[str]
    options: list[str]
    answer: int

    @property
    def example(self) -> str:
        """The item with its right answer."""
        return self.prompts[self.answer] + self.continuations[self.answer]


@dataclass(frozen=True)
class MultipleChoice:
    """Questions with options; keys and defaults are explained in conf/task/multiple_choice.yaml.

    By default the option's text is scored, not its letter: models of a few hundred million parameters cannot work
    with letters, and a shift between letters says nothing about knowledge.
    """

    data: str | None = "mmlu"
    path: str | None = None
    hub: Hub | None = None
    limit: int | None = 100
    prompt: str = "Question: {{ question }}\nAnswer:"
    options: Any = "{{ options }}"
    answer: str = "{{ answer }}"
    continuation: str = " {{ option }}"
    shots: int = 0
    shots_path: str | None = None
    shots_by: str | None = None
    normalize: bool = False
    margin_points: float = 5.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.data is not None:
            one_of("data", self.data, PINNED)
        if self.limit is not None:
            at_least("limit", self.limit, 1)
        at_least("shots", self.shots, 0)
        at_least("margin_points", self.margin_points, 0)
        if not isinstance(self.options, str | list):
            raise ValueError(f"options={self.options} is neither a template of a list nor a list of templates")
        for key in ("prompt", "answer", "continuation"):
            prompt.check(key, getattr(self, key))
        for option in [self.options] if isinstance(self.options, str) else self.options:
            prompt.check("options", str(option))

    def check(self) -> None:
        """Read the items once."""
        self._questions()

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a question with its longest option is longer than the model's context."""
        longest = 0
        for item in self._questions():
            prefixes, options = self._tokens(model, item)
            if not all(prefixes) or not all(options):
                raise ValueError(f"prompt: the tokenizer makes no token of {item.prompts[0]!r} or of an option")
            longest = max(longest, *(len(prefix) + len(option) for prefix, option in zip(prefixes, options)))
        if longest > model.context:
            raise ValueError(
                f"prompt: the longest question with an option has {longest} tokens, the model's context "
                f"{model.context}; leave the task out, or give shorter ones with path=FILE"
            )
        return []

    def texts(self) -> list[str]:
        """The questions as they are asked, without examples."""
        return [item.prompts[0] for item in self._questions(shots=False)]

    def protocol(self) -> str:
        """Settings, templates and the hash of items and examples."""
        shots = self._shots()
        return protocol_of(
            self, self._items().sha256 + (shots.sha256 if shots else ""), without=["data", "normalize", "margin_points"]
        )

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """log_probs: the summed log-probability of every option, item after item in one row."""
        questions = self._questions()
        sums: list[float] = []
        for done, item in enumerate(questions, start=1):
            prefixes, options = self._tokens(model, item)
            if prefixes.count(prefixes[0]) == len(prefixes):  # run once
                scores = model.continuations(prefixes[0], options)
            else:
                scores = [model.continuations(prefix, [option])[0] for prefix, option in zip(prefixes, options)]
            sums += [float(values.sum(dtype=np.float64)) for values in scores]
            progress(done, len(questions))
        return {"log_probs": np.array(sums, dtype=np.float64)}

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """Accuracy of both, plain and per character, flips in both directions, exact McNemar."""
        questions = self._questions()
        answers = np.array([item.answer for item in questions])
        sides = (float_outputs["log_probs"], quant_outputs["log_probs"])
        chosen = {rule: [_choices(questions, side, rule) for side in sides] for rule in (False, True)}
        right = {rule: [choice == answers for choice in pair] for rule, pair in chosen.items()}
        was, now = right[self.normalize]
        own, metrics = accuracy(
            name,
            was,
            now,
            margin_points=self.margin_points,
            floor=at_chance(was, float(np.mean([1 / len(item.options) for item in questions]))),
            signature=self._signature(len(questions)),
        )
        for rule, label in ((False, "plain"), (True, "normalized")):
            for side, hits in zip(("float", "quant"), right[rule]):
                metrics[f"{name}/accuracy_{label}_{side}"] = float(hits.mean())
        for side, log_probs in zip(("float", "quant"), sides):
            metrics[f"{name}/answer_log_prob_{side}"] = _answer_log_prob(questions, log_probs)
        return Report(metrics, [own], _samples(questions, *chosen[self.normalize]))

    def _signature(self, count: int) -> str:
        rule = "per-character" if self.normalize else "sum"
        return (
            f"acc|items:{count}|shots:{self.shots}|score:{self.continuation!r} of {self.options}|norm:{rule}|"
            f"prompt:{self.prompt!r}|data:{self._items().sha256[:12]}"
        )

    def _items(self) -> Items:
        return items.items(self.path, self.hub, self.data)

    def _shots(self) -> Items | None:
        return items.examples(self.shots, self.shots_path, self.hub)

    def _questions(self, shots: bool = True) -> list[Question]:
        """The items, with the examples before them."""
        found = self._items().selected(self.limit)
        questions = found.made(self._question)
        examples = self._shots() if shots else None
        if examples is None:
            return questions
        solved = examples.made(lambda row: (row, self._question(row).example))
        return [self._after(solved, row, item) for (_, row), item in zip(found.rows, questions)]

    def _after(self, examples: list[tuple[Row, str]], row: Row, item: Question) -> Question:
        """The item after the first examples, of those that are like it in the column `shots_by`."""
        by = self.shots_by
        before = items.first(self.shots, [text for other, text in examples if not by or other.get(by) == row.get(by)])
        prompts = ["\n\n".join([*before, own]) for own in item.prompts]
        return Question(prompts, item.continuations, item.options, item.answer)

    def _question(self, row: Row) -> Question:
        templates = [self.options] if isinstance(self.options, str) else map(str, self.options)
        options = [text for template in templates for text in prompt.texts("options", template, row)]
        if len(options) < 2:
            raise ValueError("options are fewer than two")
        sides = [{**row, "option": option} for option in options]
        prompts = [prompt.text("prompt", self.prompt, columns) for columns in sides]
        continuations = [prompt.text("continuation", self.continuation, columns) for columns in sides]
        return Question(prompts, continuations, options, _index(prompt.value("answer", self.answer, row), options))

    @staticmethod
    def _tokens(model: Reader, item: Question) -> tuple[list[Tokens], list[Tokens]]:
        """What stands before each option, and the options."""
        # the space belongs to the option: tokenizers join it with the word that follows
        encoded = {text: model.encode(text) for text in item.prompts}
        return [encoded[text] for text in item.prompts], [model.encode(text) for text in item.continuations]


def _index(answer: Any, options: list[str]) -> int:
    """Which option is right: its number from 0 on, its text, or its letter."""
    if isinstance(answer, str):
        if options.count(answer) == 1:
            return options.index(answer)
        if answer not in tuple(string.ascii_uppercase[: len(options)]):
            last = string.ascii_uppercase[len(options) - 1]
            raise ValueError(f"answer {answer!r} is no option; allowed: a number from 0, a letter to {last}, its text")
        return string.ascii_uppercase.index(answer)
    if not isinstance(answer, int) or not 0 <= answer < len(options):
        raise ValueError(f"answer {answer} is out of range; allowed: 0 to {len(options) - 1}")
    return int(answer)


def _choices(questions: list[Question], log_probs: Values, per_character: bool) -> np.ndarray:
    """Index of the most likely option of every item; of equal ones the first."""
    choices, at = [], 0
    for item in questions:
        lengths = [len(option) if per_character else 1 for option in item.options]
        choices.append(int(np.argmax(log_probs[at : at + len(lengths)] / lengths)))
        at += len(lengths)
    return np.array(choices)


def _answer_log_prob(questions: list[Question], log_probs: Values) -> float:
    """Mean log-probability of the right options: moves before an answer flips, and shows a model that broke."""
    starts = np.cumsum([0, *(len(item.options) for item in questions[:-1])])
    return float(log_probs[starts + [item.answer for item in questions]].mean())


def _samples(questions: list[Question], was: np.ndarray, now: np.ndarray) -> list[dict[str, str]]:
    """A few items, those with a changed answer first."""
    order = sorted(range(len(questions)), key=lambda i: bool(was[i] == now[i]))
    return [
        {
            "input": item.prompts[0],
            "reference": item.options[item.answer],
            "float": item.options[was[i]],
            "quantized": item.options[now[i]],
        }
        for i, item in ((i, questions[i]) for i in order[:SAMPLES])
    ]
