"""Generation whose answer has to be one exact text: a number, a name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import regex

from slimrun.evaluation import prompt
from slimrun.evaluation.base import LanguageModel, Outputs, Progress, Reference, at_least, protocol_of, signed
from slimrun.evaluation.comparison import Report
from slimrun.evaluation.generation import Generation, examples, flaws
from slimrun.evaluation.metric.accuracy import Hits, accuracy, within_margin
from slimrun.evaluation.source import items
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.source.table import Row
from slimrun.evaluation.statistics import noise_of_mean

SECONDS = 1.0  # for a pattern of the user on one answer


@dataclass(frozen=True)
class Problem:
    """An item: what the model is asked, and every answer that is right."""

    prompt: str
    answers: list[str]


@dataclass(frozen=True)
class ExactMatch(Generation):
    """Problems with exact answers; keys and defaults are explained in conf/task/gsm8k.yaml."""

    limit: int | None = None
    prompt: str = "Question: {{ question }}\nAnswer:"
    answer: str = "{{ answer }}"
    extract: str | None = None
    ignore: str | None = None
    stop: list[str] = field(default_factory=list)
    shots: int = 0
    shots_path: str | None = None
    example: str = "{{ answer }}"
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        at_least("shots", self.shots, 0)
        for key in ("prompt", "answer", "example"):
            prompt.check(key, getattr(self, key))
        for key in ("extract", "ignore"):
            prompt.check_pattern(key, getattr(self, key))
        if not isinstance(self.stop, list) or not all(isinstance(mark, str) and mark for mark in self.stop):
            raise ValueError(f"stop={self.stop} is out of range; allowed: a list of texts, none of them empty")

    def check(self) -> None:
        """Read the items once."""
        self._problems()

    def texts(self) -> list[str]:
        """The prompts without examples."""
        return self.items().selected(self.limit).made(lambda row: prompt.text("prompt", self.prompt, row))

    def prompts(self) -> list[str]:
        """The problems, with examples before them."""
        return [problem.prompt for problem in self._problems()]

    def protocol(self) -> str:
        """Settings, templates and the hash of items and examples."""
        shots = self._shots()
        without = ["answer", "extract", "ignore", "stop", "margin_points"]
        return protocol_of(self, self.items().sha256 + (shots.sha256 if shots else ""), without=without)

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """What `answers` says, and with a reference `disturbed_answers`."""
        return self.answers(model, progress) | (self.disturbed_answers(model) if reference else {})

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """The share of exact answers, and which flipped."""
        problems = self._problems()
        sides = [outputs["texts"].tolist() for outputs in (float_outputs, quant_outputs)]
        was, now = (self._hits(texts, problems) for texts in sides)
        floor = within_margin(was, self.margin_points)
        signature = signed(self._signature(float_outputs), self.protocol())
        own, metrics = accuracy(name, was, now, margin_points=self.margin_points, floor=floor, signature=signature)
        if "again" in quant_outputs:
            again = self._hits(quant_outputs["again"].tolist(), problems)
            moves = again.astype(np.float64) - now[: len(again)]
            own = replace(own, noise=noise_of_mean(moves, len(problems)))
        references = [" | ".join(item.answers) for item in problems]
        rows = [own, *flaws(name, float_outputs, quant_outputs)]
        samples = examples([item.prompt for item in problems], references, *sides)
        return Report(metrics | own.metrics("accuracy"), rows, samples)

    def _hits(self, texts: list[str], problems: list[Problem]) -> Hits:
        """Which of the texts answer their problem."""
        return np.array([self._right(text, item.answers) for text, item in zip(texts, problems)])

    def _right(self, text: str, answers: list[str]) -> bool:
        """Whether a text's answer, its last where there are several, is one of the right ones.

        ArithmeticError when an expression takes too long on it.
        """
        with self._in_time():
            return self._matches(text, answers)

    def _matches(self, text: str, answers: list[str]) -> bool:
        for mark in self.stop:
            text = text.partition(mark)[0]
        if self.extract:
            matches = regex.findall(self.extract, text, timeout=SECONDS)
            last = matches[-1] if matches else ""
            text = next((group for group in last if group), "") if isinstance(last, tuple) else last
        plain = self._plain(text)
        return bool(plain) and plain in map(self._plain, answers)

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            told = f"extract={self.extract} or ignore={self.ignore} takes more than {SECONDS} s on an answer"
            raise ArithmeticError(f"{told}; repeat less inside of what is repeated") from None

    def _plain(self, text: str) -> str:
        return str(regex.sub(self.ignore, "", text, timeout=SECONDS) if self.ignore else text).strip()

    def _signature(self, outputs: Outputs) -> str:
        return (
            f"exact-match|shots:{self.shots}|extract:{self.extract}|ignore:{self.ignore}|stop:{self.stop}|"
            f"prompt:{self.prompt!r}|answer:{self.answer!r}|{self.how(outputs)}"
        )

    def _shots(self) -> Items | None:
        return items.examples(self.shots, self.shots_path, self.hub)

    def _problems(self) -> list[Problem]:
        """The items, with the examples before them."""
        examples, selected = self._shots(), self.items().selected(self.limit)
        problems = selected.made(self._problem)
        if examples is None:
            return problems
        before = examples.before(selected, self.shots, self._example)
        return [Problem("\n\n".join([*shown, item.prompt]), item.answers) for item, shown in zip(problems, before)]

    def _problem(self, row: Row) -> Problem:
        answers = prompt.texts("answer", self.answer, row)
        with self._in_time():
            if not any(map(self._plain, answers)):
                raise ValueError(f"answer {answers[0]!r} is empty without what ignore={self.ignore} leaves out")
        return Problem(prompt.text("prompt", self.prompt, row), answers)

    def _example(self, row: Row) -> str:
        return f"{prompt.text('prompt', self.prompt, row)} {prompt.text('example', self.example, row)}"
