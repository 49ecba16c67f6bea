"""Multiple choice by likelihood: the answer is the option the model finds most likely after the question."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np

from slimrun.evaluation import prompt, tokens
from slimrun.evaluation.base import (
    FloatArray,
    LanguageModel,
    Outputs,
    Prefixed,
    Progress,
    Reader,
    Reference,
    at_least,
    finite,
    one_of,
    protocol_of,
    signed,
)
from slimrun.evaluation.comparison import Metrics, Report, Score
from slimrun.evaluation.metric.accuracy import Hits, accuracy, answer_probability, at_chance
from slimrun.evaluation.question import Asked, Question
from slimrun.evaluation.source import items
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.statistics import Values, noise_of_mean
from slimrun.evaluation.tokens import CUT, REFUSE, TOO_LONG

NOISE_ITEMS = 5  # of 100: 5 % of the time
LIKELIHOOD, ACCURACY = JUDGES = ("likelihood", "accuracy")
PINNED = ("arc_easy", "socialiqa", "mmlu", "parables")


@dataclass(frozen=True)
class MultipleChoice:
    """Questions with options; keys and defaults are explained in conf/task/multiple_choice.yaml.

    By default the option's text is scored, not its letter: models of a few hundred million parameters cannot work
    with letters, and a shift between letters says nothing about knowledge.
    """

    data: str | None = "arc_easy"
    path: str | None = None
    hub: Hub | None = None
    limit: int | None = 200
    prompt: str = "Question: {{ question }}\nAnswer:"
    options: Any = "{{ options }}"
    answer: str = "{{ answer }}"
    continuation: str = " {{ option }}"
    prefix: str | None = None
    chat: bool = False
    description: str = ""
    shots: int = 0
    shots_path: str | None = None
    shots_by: str | None = None
    too_long: str = REFUSE
    normalize: bool = False
    judged_by: str = LIKELIHOOD
    margin_points: float = 2.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.data is not None:
            one_of("data", self.data, PINNED)
        if self.limit is not None:
            at_least("limit", self.limit, 1)
        at_least("shots", self.shots, 0)
        at_least("margin_points", self.margin_points, 0)
        one_of("too_long", self.too_long, TOO_LONG)
        one_of("judged_by", self.judged_by, JUDGES)
        if not isinstance(self.options, str | list):
            raise ValueError(f"options={self.options} is neither a template of a list nor a list of templates")
        for key in ("prompt", "answer", "continuation", "description"):
            prompt.check(key, getattr(self, key))
        for option in [self.options] if isinstance(self.options, str) else self.options:
            prompt.check("options", str(option))

    def check(self) -> None:
        """Read the items once."""
        self._questions()

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a question with an option is longer than the model's context; a note on cut ones."""
        return self._encoded(model)[1]

    def _encoded(self, model: Reader) -> tuple[list[list[Prefixed]], list[str]]:
        """The options of every question after what stands before them, and a note on questions that were cut."""
        front = tokens.front(model, self.prefix)
        asked = []
        for item in self._questions():
            asked.append(item.prefixed(model, front, self.chat))
            if not all(prefix and all(options) for prefix, options in asked[-1]):
                raise ValueError(f"prompt: the tokenizer makes no token of {item.prompts[0]!r} or of an option")
        around = model.encode_prompt("") if self.chat else front
        return tokens.within(asked, around, model.context, self.too_long, "prompt")

    def texts(self) -> list[str]:
        """The questions as they are asked, without description and examples."""
        return [item.prompts[0] for item in self._questions(shots=False)]

    def protocol(self) -> str:
        """Settings, templates and the hash of items and examples."""
        shots = self._shots()
        data = self._items().sha256 + (shots.sha256 if shots else "")
        unless_cut = [] if self.too_long == CUT else ["too_long"]  # refusing changes no score
        return protocol_of(self, data, without=["data", "normalize", "judged_by", "margin_points", *unless_cut])

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """log_probs: the summed log-probability of every option, item after item in one row."""
        asked, _ = self._encoded(model)
        sums: list[float] = []
        log_probs = model.all_continuations(list(chain(*asked)))
        for done, parts in enumerate(asked, start=1):
            sums += _sums(chain(*islice(log_probs, len(parts))))
            progress(done, len(asked))
        outputs: Outputs = {"log_probs": np.array(sums)}
        outputs |= tokens.dated(model) if self.chat else tokens.kept(tokens.front(model, self.prefix))
        return outputs | (self._moves(model, asked[:NOISE_ITEMS], outputs["log_probs"]) if reference else {})

    def _moves(self, model: LanguageModel, asked: list[list[Prefixed]], log_probs: Values) -> Outputs:
        """moves [k]: what the options of these items, the first ones, change by when the model is disturbed."""
        with model.disturbed() as moved:
            if not moved:
                return {}
            again = _sums(chain(*(model.continuations(*part) for part in chain(*asked))))  # each is disturbed once
        return {"moves": np.array(again) - log_probs[: len(again)]}

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """How probable the right answers are among their options, accuracy plain and per character, and its flips."""
        questions = self._questions()
        finite(name, float_outputs, quant_outputs, "log_probs")
        sides = (float_outputs["log_probs"], quant_outputs["log_probs"])
        chosen = {rule: [_choices(questions, side, rule) for side in sides] for rule in (False, True)}
        answers = np.array([item.answer for item in questions])
        right = {rule: [choice == answers for choice in pair] for rule, pair in chosen.items()}
        signature = signed(self._signature(len(questions), float_outputs), self.protocol())
        rows, metrics = _rows(self, name, (float_outputs, quant_outputs), right[self.normalize], signature)
        for rule, label in ((False, "plain"), (True, "normalized")):
            for side, hits in zip(("float", "quant"), right[rule]):
                metrics[f"{name}/accuracy_{label}_{side}"] = float(hits.mean())
        for side, log_probs in zip(("float", "quant"), sides):
            metrics[f"{name}/answer_log_prob_{side}"] = _answer_log_prob(questions, log_probs)
        return Report(metrics, rows, _samples(questions, *chosen[self.normalize]))

    def _signature(self, count: int, outputs: Outputs) -> str:
        rule, cut = "per-character" if self.normalize else "sum", f"too_long:{CUT}|" if self.too_long == CUT else ""
        return (
            f"judged:{self.judged_by}|items:{count}|shots:{self.shots}|norm:{rule}|"
            f"score:{self.continuation!r} of {self.options}|"
            f"{f'description:{self.description!r}|' if self.description else ''}"
            f"{cut}{'chat' if self.chat else tokens.told(outputs)}|prompt:{self.prompt!r}|"
            f"data:{self._items().sha256[:12]}{tokens.told_date(outputs)}"
        )

    def _items(self) -> Items:
        return items.items(self.path, self.hub, self.data)

    def _shots(self) -> Items | None:
        return items.examples(self.shots, self.shots_path, self.hub)

    @property
    def _asked(self) -> Asked:
        return Asked(self.prompt, self.options, self.answer, self.continuation)

    def _questions(self, shots: bool = True) -> list[Question]:
        """The items, with description and examples before them."""
        selected = self._items().selected(self.limit)
        way = self._asked.way(selected)
        questions = selected.made(lambda row: self._asked.question(row, way))
        if not shots:
            return questions
        described = selected.made(lambda row: prompt.filled("description", self.description, row))
        return [item.described(text) for item, text in zip(self._after_examples(questions, selected, way), described)]

    def _after_examples(self, questions: list[Question], selected: Items, way: str) -> list[Question]:
        examples = self._shots()
        if examples is None:
            return questions
        solved = examples.before(selected, self.shots, lambda row: self._asked.question(row, way), self.shots_by)
        return [item.after(shown) for item, shown in zip(questions, solved)]


def _rows(
    task: MultipleChoice, name: str, outputs: tuple[Outputs, Outputs], right: list[Hits], signature: str
) -> tuple[list[Score], Metrics]:
    """The row with the verdict, the other beside it, and the keys of both; outputs and hits of float and quantized."""
    questions, (before, after), (was, now) = task._questions(), outputs, right
    chance = _chance(questions)
    floor, own_margin = at_chance(was, float(chance.mean())), task.judged_by == ACCURACY
    margin = task.margin_points if own_margin else None
    hits, metrics = accuracy(name, was, now, margin_points=margin, floor=floor, signature=signature)
    moves = after.get("moves")
    if moves is not None:
        hits = replace(hits, noise=_undecided(questions, after["log_probs"], moves, task.normalize))
    if own_margin:
        return [hits], metrics | hits.metrics("accuracy")
    first, second = (_probabilities(questions, side["log_probs"], task.normalize) for side in (before, after))
    own = answer_probability(
        name, first, second, chance, right=was, margin_points=task.margin_points, signature=signature
    )
    if moves is not None:
        again = after["log_probs"][: len(moves)] + moves
        moved = _probabilities(questions[:NOISE_ITEMS], again, task.normalize) - second[:NOISE_ITEMS]
        own = replace(own, noise=noise_of_mean(moved, len(questions)))
    return [own, hits], metrics | own.metrics("answer_probability")


def _chance(questions: list[Question]) -> Values:
    """[n]: what a guess has of each item: one of its options, or always the text that is most often right."""
    texts = [item.options[item.answer] for item in questions]
    commonest = max(Counter(texts).values(), default=0) / max(1, len(texts))
    return np.array([max(1 / len(item.options), commonest) for item in questions])


def _sums(options: Iterable[FloatArray]) -> list[float]:
    """The log-probability of every option, of those of its tokens."""
    return [float(values.sum(dtype=np.float64)) for values in options]


def _choices(questions: list[Question], log_probs: Values, per_character: bool) -> np.ndarray:
    """Index of the most likely option of every item; of equal ones the first."""
    choices, at = [], 0
    for item in questions:
        lengths = [len(option) if per_character else 1 for option in item.options]
        choices.append(int(np.argmax(log_probs[at : at + len(lengths)] / lengths)))
        at += len(lengths)
    return np.array(choices)


def _probabilities(questions: list[Question], log_probs: Values, per_character: bool) -> Values:
    """[n]: of the right option among those of its item; per character as if all were as long as they are on average."""
    probabilities, at = [], 0
    for item in questions:
        lengths = np.array([len(option) if per_character else 1 for option in item.options])
        scores = log_probs[at : at + len(lengths)] / lengths * lengths.mean()
        weights = np.exp(scores - scores.max())
        probabilities.append(weights[item.answer] / weights.sum())
        at += len(lengths)
    return np.array(probabilities)


def _undecided(questions: list[Question], log_probs: Values, moves: Values, per_character: bool) -> float:
    """Share of the items whose answer rounding alone may change: its lead over the next option is no larger."""
    move, at, undecided = np.sqrt(2) * noise_of_mean(moves, 1), 0, 0
    for item in questions:
        lengths = np.array([len(option) if per_character else 1 for option in item.options])
        scores = log_probs[at : at + len(lengths)] / lengths
        second, first = np.sort(scores)[-2:]
        undecided += int(first - second <= move / lengths[np.argmax(scores)])
        at += len(lengths)
    return undecided / len(questions)


def _answer_log_prob(questions: list[Question], log_probs: Values) -> float:
    """Mean log-probability of the right options: moves before an answer flips, and shows a model that broke."""
    starts = np.cumsum([0, *(len(item.options) for item in questions[:-1])])
    return float(log_probs[starts + [item.answer for item in questions]].mean())


def _samples(questions: list[Question], was: np.ndarray, now: np.ndarray) -> list[dict[str, str]]:
    """The items, those with a changed answer first."""
    order = sorted(range(len(questions)), key=lambda i: bool(was[i] == now[i]))
    return [
        {
            "input": item.prompts[0],
            "reference": item.options[item.answer],
            "float": item.options[was[i]],
            "quantized": item.options[now[i]],
        }
        for i, item in ((i, questions[i]) for i in order)
    ]
