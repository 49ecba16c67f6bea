"""Questions with options: an item of a data set as the model is asked it."""

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from slimrun.evaluation import prompt, tokens
from slimrun.evaluation.base import Prefixed, Reader
from slimrun.evaluation.source.table import Row


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

    def after(self, examples: Sequence[str]) -> "Question":
        """The item with examples before it."""
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

    def question(self, row: Row) -> Question:
        """The row as it is asked; ValueError names the template that does not fit it."""
        templates = [self.options] if isinstance(self.options, str) else map(str, self.options)
        options = [text for template in templates for text in prompt.texts("options", template, row)]
        if len(options) < 2:
            raise ValueError("options are fewer than two")
        sides = [{**row, "option": option} for option in options]
        prompts = [prompt.text("prompt", self.prompt, columns) for columns in sides]
        continuations = [prompt.text("continuation", self.continuation, columns) for columns in sides]
        return Question(prompts, continuations, options, _index(prompt.value("answer", self.answer, row), options))


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
