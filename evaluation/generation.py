"""What tasks share whose answers are generated: prompts, and answers in batches of one shape."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimrun.evaluation import tokens
from slimrun.evaluation.base import LanguageModel, Outputs, Progress, Reader, at_least, batches, one_of
from slimrun.evaluation.comparison import Score, paired
from slimrun.evaluation.source import items
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.tokens import CUT

NOISE_ITEMS = 4  # that are answered again by the disturbed model, and whose references it reads


@dataclass(frozen=True)
class Generation:
    """Where prompts come from, how they are put to a model, how it answers: keys that tasks of generated text have."""

    path: str | None = None
    hub: Hub | None = None
    limit: int | None = 20
    chat: bool = True
    prefix: str | None = None
    system: str | None = None
    too_long: str = tokens.REFUSE
    max_new_tokens: int = 128
    batch: int = 12
    margin_points: float = 5.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for key in ("limit", "max_new_tokens", "batch"):
            if getattr(self, key) is not None:
                at_least(key, getattr(self, key), 1)
        at_least("margin_points", self.margin_points, 0)
        one_of("too_long", self.too_long, tokens.TOO_LONG)
        if self.chat and self.prefix is not None:
            raise ValueError(f"prefix={self.prefix} is for plain text; allowed: null, or chat=false")

    def prompts(self) -> list[str]:
        """What the model is asked, item by item."""
        raise NotImplementedError

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a prompt with its answer is longer than the model's context; a note on those that are cut."""
        return self.encoded(model)[1]

    def encoded(self, model: Reader) -> tuple[list[list[int]], list[str]]:
        """The tokens of every prompt, and a note on those that lost the beginning of their text.

        Raises ValueError when a prompt with its answer does not fit into the model's context, unless it is to be cut:
        cutting it silently would score an answer to another question.
        """
        every = [self._turn(model, prompt) for prompt in self.prompts()]
        if not all(every):
            raise ValueError("prompt: the tokenizer makes no token of one of the prompts")
        room = model.context - max(self.max_new_tokens, self.spare(model) if self.too_long == CUT else 0)
        beyond = sum(len(ids) > room for ids in every)
        if self.too_long == CUT and beyond and room > len(around := self._turn(model, "")):
            note = f"too_long={CUT}: {beyond} of {len(every)} prompts lose their beginning, to {room} tokens"
            return [tokens.shortened(ids, around, room) for ids in every], [note]
        longest = max(map(len, every))
        if longest >= model.context:
            shorter = "a shorter system prompt" if self.too_long == CUT else f"too_long={CUT}"
            raise ValueError(
                f"prompt: {beyond} of {len(every)} are too long, the longest has {longest} tokens, the model's "
                f"context {model.context}; leave the task out, give shorter texts with path=FILE, or {shorter}"
            )
        if longest + self.max_new_tokens > model.context:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} is out of range; allowed: 1 to {model.context - longest}, "
                f"the model's context of {model.context} less the longest prompt"
            )
        return every, []

    def spare(self, model: Reader) -> int:
        """Tokens that have to fit behind a prompt beside those of its answer."""
        return 0

    def answered(self, count: int) -> list[int]:
        """Numbers of those of so many items that the model answers."""
        return list(range(count))

    def answers(self, model: LanguageModel, progress: Progress) -> Outputs:
        """texts: greedy answers, stripped, in the order of the items; cut: which of them reached `max_new_tokens`.

        date: the one that the prompts state, if any. Prompts of about one length go together: less is padding.
        """
        every, _ = self.encoded(model)
        asked = [every[i] for i in self.answered(len(every))]
        order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
        written: list[list[int]] = [[] for _ in asked]
        done = 0
        for group, count in batches(order, self.batch):
            for i, ids in zip(group[:count], model.generate([asked[i] for i in group], self.max_new_tokens)):
                written[i] = ids
            done += count
            progress(done, len(asked))
        texts = [model.decode(ids).strip() for ids in written]
        cut = [len(ids) >= self.max_new_tokens for ids in written]
        outputs: Outputs = {"texts": np.array(texts, dtype=np.str_), "cut": np.array(cut)}  # saved without pickle
        return outputs | (tokens.dated(model) if self.chat else tokens.kept(tokens.front(model, self.prefix)))

    def disturbed_answers(self, model: LanguageModel) -> Outputs:
        """again [k]: what the first items are answered when the model is disturbed; nothing where it cannot be."""
        every = self.encoded(model)[0]
        asked = [every[i] for i in self.answered(len(every))[:NOISE_ITEMS]]
        with model.disturbed() as moved:
            texts = [model.decode(ids).strip() for ids in model.generate(asked, self.max_new_tokens)] if moved else []
        return {"again": np.array(texts, dtype=np.str_)} if moved else {}

    def how(self, outputs: Outputs) -> str:
        """What a signature says of how the answers came about, with the date that a chat template put into prompts."""
        front = "" if self.chat else f"{tokens.told(outputs)}|"
        return (
            f"answers:{len(outputs['texts'])}|greedy|max_new_tokens:{self.max_new_tokens}|batch:{self.batch}|"
            f"chat:{self.chat}|{front}too_long:{self.too_long}|system:{self.system!r}|"
            f"data:{self.items().sha256[:12]}{tokens.told_date(outputs)}"
        )

    def items(self) -> Items:
        """All there are."""
        return items.items(self.path, self.hub)

    def _turn(self, model: Reader, text: str) -> list[int]:
        """The tokens of a prompt: as a user's turn after a system's, or as plain text."""
        if self.chat:
            return model.encode_prompt(text, self.system or "")
        return [*tokens.front(model, self.prefix), *model.encode(self._without_turn(text))]

    def _without_turn(self, text: str) -> str:
        return f"{self.system}\n\n{text}" if self.system else text


def flaws(task: str, before: Outputs, after: Outputs) -> list[Score]:
    """The rows of what is wrong with answers whatever they say: share of empty ones, share of cut ones.

    A row is there where either model has one: scores move with them.
    """
    sides = [
        {
            "empty answers, share": side["texts"] == "",
            "cut answers, share": side.get("cut", np.zeros(len(side["texts"]))),
        }
        for side in (before, after)
    ]
    shares = {name: [np.asarray(side[name], np.float64) for side in sides] for name in sides[0]}
    return [
        paired(task, name, *pair, higher_is_better=False, reach=(pair[0].mean(), 1 - pair[0].mean()))
        for name, pair in shares.items()
        if np.any(pair)
    ]


def examples(
    inputs: Sequence[str], references: Sequence[str], was: Sequence[str], now: Sequence[str]
) -> list[dict[str, str]]:
    """The items for a person to read, those with a changed answer first."""
    order = sorted(range(len(inputs)), key=lambda i: was[i] == now[i])
    return [{"input": inputs[i], "reference": references[i], "float": was[i], "quantized": now[i]} for i in order]
