"""Generation whose answer has to be one exact text: a number, a name."""

from dataclasses import dataclass, field

import numpy as np
import regex

from slimrun.evaluation import generation, prompt
from slimrun.evaluation.base import LanguageModel, Outputs, Progress, Reader, Reference, at_least, one_of, protocol_of
from slimrun.evaluation.comparison import Report
from slimrun.evaluation.metric.accuracy import accuracy
from slimrun.evaluation.source import items
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.source.table import Row

SECONDS = 1.0  # for a pattern of the user on one answer


@dataclass(frozen=True)
class Problem:
    """An item: what the model is asked, and every answer that is right."""

    prompt: str
    answers: list[str]


@dataclass(frozen=True)
class ExactMatch:
    """Problems with exact answers; keys and defaults are explained in conf/task/gsm8k.yaml."""

    path: str | None = None
    hub: Hub | None = None
    limit: int | None = None
    prompt: str = "Question: {{ question }}\nAnswer:"
    answer: str = "{{ answer }}"
    extract: str | None = None
    ignore: str | None = None
    stop: list[str] = field(default_factory=list)
    shots: int = 0
    shots_path: str | None = None
    example: str = "{{ answer }}"
    chat: bool = True
    system: str | None = None
    too_long: str = "refuse"
    max_new_tokens: int = 256
    batch: int = 20
    margin_points: float = 5.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for key in ("limit", "max_new_tokens", "batch"):
            if getattr(self, key) is not None:
                at_least(key, getattr(self, key), 1)
        at_least("shots", self.shots, 0)
        at_least("margin_points", self.margin_points, 0)
        one_of("too_long", self.too_long, generation.TOO_LONG)
        for key in ("prompt", "answer", "example"):
            prompt.check(key, getattr(self, key))
        for key in ("extract", "ignore"):
            prompt.check_pattern(key, getattr(self, key))

    def check(self) -> None:
        """Read the items once."""
        self._problems()

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a prompt with its answer is longer than the model's context."""
        return self._encoded(model)[1]

    def texts(self) -> list[str]:
        """The prompts without examples."""
        return self._items().selected(self.limit).made(lambda row: prompt.text("prompt", self.prompt, row))

    def protocol(self) -> str:
        """Settings, templates and the hash of items and examples."""
        shots = self._shots()
        without = ["answer", "extract", "ignore", "stop", "margin_points"]
        return protocol_of(self, self._items().sha256 + (shots.sha256 if shots else ""), without=without)

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """texts: what the model wrote."""
        return generation.answers(model, self._encoded(model)[0], self.batch, self.max_new_tokens, progress)

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """The share of exact answers, and which flipped."""
        problems = self._problems()
        sides = [outputs["texts"].tolist() for outputs in (float_outputs, quant_outputs)]
        was, now = (np.array([self._right(text, item.answers) for text, item in zip(side, problems)]) for side in sides)
        floor = "" if was.any() else "the float model answers none"
        signature = self._signature(len(problems)) + generation.dated(float_outputs)
        own, metrics = accuracy(name, was, now, margin_points=self.margin_points, floor=floor, signature=signature)
        references = [" | ".join(item.answers) for item in problems]
        flawed = generation.flaws(name, float_outputs, quant_outputs)
        return Report(
            metrics, [own, *flawed], generation.examples([item.prompt for item in problems], references, *sides)
        )

    def _right(self, text: str, answers: list[str]) -> bool:
        """Whether a text's answer, its last where there are several, is one of the right ones.

        ArithmeticError when an expression takes too long on it.
        """
        try:
            return self._matches(text, answers)
        except TimeoutError:
            told = f"extract={self.extract} or ignore={self.ignore} takes more than {SECONDS} s on an answer"
            raise ArithmeticError(f"{told}; repeat less inside of what is repeated") from None

    def _matches(self, text: str, answers: list[str]) -> bool:
        for mark in self.stop:
            text = text.partition(mark)[0]
        if self.extract:
            matches = regex.findall(self.extract, text, timeout=SECONDS)
            last = matches[-1] if matches else ""
            text = next((group for group in last if group), "") if isinstance(last, tuple) else last
        return bool(text.strip()) and self._plain(text) in {self._plain(answer) for answer in answers}

    def _plain(self, text: str) -> str:
        return str(regex.sub(self.ignore, "", text, timeout=SECONDS) if self.ignore else text).strip()

    def _signature(self, count: int) -> str:
        return (
            f"exact-match|items:{count}|shots:{self.shots}|extract:{self.extract}|ignore:{self.ignore}|"
            f"stop:{self.stop}|"
            f"greedy|max_new_tokens:{self.max_new_tokens}|batch:{self.batch}|chat:{self.chat}|"
            f"too_long:{self.too_long}|"
            f"system:{self.system!r}|prompt:{self.prompt!r}|"
            f"answer:{self.answer!r}|data:{self._items().sha256[:12]}"
        )

    def _encoded(self, model: Reader) -> tuple[list[list[int]], list[str]]:
        prompting = generation.Prompting(self.chat, self.system, self.too_long)
        prompts = [item.prompt for item in self._problems()]
        return generation.encoded(model, prompts, self.max_new_tokens, prompting)

    def _items(self) -> Items:
        return items.items(self.path, self.hub)

    def _shots(self) -> Items | None:
        return items.examples(self.shots, self.shots_path, self.hub)

    def _problems(self) -> list[Problem]:
        """The items, with the examples before them."""
        shots = self._shots()
        before = shots.first(self.shots).made(self._example) if shots else []
        problems = self._items().selected(self.limit).made(self._problem)
        return [Problem("\n\n".join([*before, item.prompt]), item.answers) for item in problems]

    def _problem(self, row: Row) -> Problem:
        return Problem(prompt.text("prompt", self.prompt, row), prompt.texts("answer", self.answer, row))

    def _example(self, row: Row) -> str:
        return f"{prompt.text('prompt', self.prompt, row)} {prompt.text('example', self.example, row)}"
