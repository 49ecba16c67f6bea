"""Questions with options: an item of a data set as the model is asked it."""

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from slimrun.evaluation import prompt, tokens
from slimrun.evaluation.base import Prefixed, Reader
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.source.table import Row

TEXT, LETTER, NUMBER = WAYS = ("text", "letter", "number")  # that an answer may name its option in


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

    def tokens(self, model: Reader, front: list[int], chat: bool) -> tuple[list[list[int]], list[list[int]]]:
        """What stands before each option, and the options."""
        if chat:
            encoded = {text: model.encode_prompt(text) for text in self.prompts}
            return [encoded[text] for text in self.prompts], [model.encode(text) for text in self.continuations]
        # the space belongs to the option: tokenizers join it with the word that follows
        encoded = {text: [*front, *model.encode(text)] for text in self.prompts}
        options = [tokens.continued(model, *pair) for pair in zip(self.prompts, self.continuations)]
        return [encoded[text] for text in self.prompts], options

    def prefixed(self, model: Reader, front: list[int], chat: bool) -> list[Prefixed]:
        """All options after the prefix that they share, which is run once, or each after its own."""
        prefixes, options = self.tokens(model, front, chat)
        if prefixes.count(prefixes[0]) == len(prefixes):
            return [(prefixes[0], options)]
        return [(prefix, [option]) for prefix, option in zip(prefixes, options)]

    def after(self, solved: Sequence["Question"]) -> "Question":
        """The item with solved ones before it."""
        examples = [other.example for other in solved]
        return replace(self, prompts=["\n\n".join([*examples, own]) for own in self.prompts])

    def described(self, text: str) -> "Question":
        """The item with this text before all else."""
        return replace(self, prompts=[text + own for own in self.prompts])


@dataclass(frozen=True)
class Asked:
    """The templates that make questions of rows; conf/task/multiple_choice.yaml explains them."""

    prompt: str
    options: Any
    answer: str
    continuation: str

    def way(self, items: Items) -> str:
        """How the answers of the items name an option, all of them alike: as most do, `question` refuses the others.

        ValueError when all fit two ways that do not name the same options.
        """
        named = items.made(lambda row: _named(prompt.value("answer", self.answer, row), self._options(row)))
        best = max(WAYS, key=lambda way: sum(way in ways for ways in named))
        for other in WAYS:
            both = all(best in ways and other in ways for ways in named)
            for (place, _), ways in zip(items.rows, named if both else ()):
                if ways[other] != ways[best]:
                    raise ValueError(
                        f"{items.origin}, {place}: answer is the {best} of option {ways[best]} and the {other} of "
                        f"option {ways[other]}, and in all items both fit; allowed: a template that gives a number"
                    )
        return best

    def question(self, row: Row, way: str) -> Question:
        """The row as it is asked; ValueError names the template that does not fit it."""
        options = self._options(row)
        sides = [{**row, "option": option} for option in options]
        prompts = [prompt.text("prompt", self.prompt, columns) for columns in sides]
        continuations = [prompt.text("continuation", self.continuation, columns) for columns in sides]
        answer = prompt.value("answer", self.answer, row)
        named = _named(answer, options)
        if way not in named:
            raise ValueError(f"answer {answer!r} is no {way}, as those of other items are; allowed: one way for all")
        return Question(prompts, continuations, options, named[way])

    def _options(self, row: Row) -> list[str]:
        templates = [self.options] if isinstance(self.options, str) else map(str, self.options)
        options = [text for template in templates for text in prompt.texts("options", template, row)]
        if len(options) < 2:
            raise ValueError("options are fewer than two")
        return options


def _named(answer: Any, options: list[str]) -> dict[str, int]:
    """Which option is right, by each way in which the answer may name it; a cell of a table has numbers as text."""
    letters, numbers = string.ascii_uppercase[: len(options)], range(len(options))
    named = {}
    if isinstance(answer, str):
        if options.count(answer) == 1:
            named[TEXT] = options.index(answer)
        if answer in tuple(letters):
            named[LETTER] = letters.index(answer)
        if answer.isdecimal() and int(answer) in numbers:
            named[NUMBER] = int(answer)
    elif isinstance(answer, int) and answer in numbers:
        named[NUMBER] = int(answer)
    if not named and isinstance(answer, str):
        allowed = f"a number from 0 to {numbers[-1]}, a letter to {letters[-1]}, its text"
        raise ValueError(f"answer {answer!r} is no option; allowed: {allowed}")
    if not named:
        raise ValueError(f"answer {answer} is out of range; allowed: 0 to {numbers[-1]}")
    return named
