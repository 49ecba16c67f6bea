"""The last word of a text, as LAMBADA asks for it: does the model predict it, and how likely does it find it?"""

from dataclasses import dataclass

import numpy as np

from slimrun.evaluation import prompt, tokens
from slimrun.evaluation.base import (
    LanguageModel,
    Outputs,
    Progress,
    Reader,
    Reference,
    at_least,
    finite,
    protocol_of,
    signed,
)
from slimrun.evaluation.comparison import Report
from slimrun.evaluation.metric import fidelity
from slimrun.evaluation.metric.accuracy import accuracy, within_margin
from slimrun.evaluation.source import items
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.source.table import Row


@dataclass(frozen=True)
class LastWord:
    """Texts whose last word follows from what stands before it; keys and defaults in conf/task/lambada.yaml."""

    path: str | None = None
    hub: Hub | None = None
    limit: int | None = None
    text: str = "{{ text }}"
    prefix: str | None = None
    margin_points: float = 5.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.limit is not None:
            at_least("limit", self.limit, 1)
        at_least("margin_points", self.margin_points, 0)
        prompt.check("text", self.text)

    def check(self) -> None:
        """Read the items once."""
        self._pairs()

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a text is longer than the model's context."""
        for before, word in self._pairs():
            parts = self._tokens(model, before, word)
            if not all(parts):
                raise ValueError(f"text: the tokenizer makes no token of {before!r} or of {word!r}")
            if sum(map(len, parts)) > model.context:
                raise ValueError(
                    f"text: one has {sum(map(len, parts))} tokens, the model's context {model.context}; leave the "
                    "task out, or give shorter ones with path=FILE"
                )
        return []

    def texts(self) -> list[str]:
        """The texts."""
        return [before + word for before, word in self._pairs()]

    def protocol(self) -> str:
        """Settings and the hash of the items."""
        return protocol_of(self, self._items().sha256, without=["margin_points"])

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """log_probs [n]: of the whole word; right [n]: whether each of its tokens is the most likely one."""
        asked = [self._tokens(model, *pair) for pair in self._pairs()]
        log_probs, right = [], []
        hiddens = model.hiddens([np.array([prefix + ids]) for prefix, ids in asked])
        for done, ((prefix, ids), hidden) in enumerate(zip(asked, hiddens), start=1):
            states = hidden[0, len(prefix) - 1 : -1]
            scores = model.log_probs(states)
            log_probs.append(float(np.take_along_axis(scores, np.array(ids)[:, None], axis=1).sum(dtype=np.float64)))
            right.append(bool((scores.argmax(axis=1) == ids).all()))
            progress(done, len(asked))
        front = tokens.kept(tokens.front(model, self.prefix))
        return {"log_probs": np.array(log_probs), "right": np.array(right)} | front

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """Accuracy with a verdict, and the perplexity of the word."""
        finite(name, float_outputs, quant_outputs, "log_probs")
        was, now = float_outputs["right"], quant_outputs["right"]
        floor = within_margin(was, self.margin_points)
        how = f"last-word|items:{len(was)}|{tokens.told(float_outputs)}|text:{self.text!r}"
        signature = signed(f"{how}|data:{self._items().sha256[:12]}", self.protocol())
        own, metrics = accuracy(name, was, now, margin_points=self.margin_points, floor=floor, signature=signature)
        word = fidelity.perplexities(name, "word perplexity", float_outputs["log_probs"], quant_outputs["log_probs"])
        metrics |= {f"{name}/word_ppl_float": word.float_value, f"{name}/word_ppl_quant": word.quant_value}
        order = sorted(range(len(was)), key=lambda i: bool(was[i] == now[i]))
        pairs, told = self._pairs(), ("another word", "the word")
        samples = [
            {"input": pairs[i][0], "reference": pairs[i][1], "float": told[int(was[i])], "quantized": told[int(now[i])]}
            for i in order
        ]
        return Report(metrics, [own, word], samples)

    def _tokens(self, model: Reader, before: str, word: str) -> tuple[list[int], list[int]]:
        return [*tokens.front(model, self.prefix), *model.encode(before)], tokens.continued(model, before, word)

    def _items(self) -> Items:
        return items.items(self.path, self.hub)

    def _pairs(self) -> list[tuple[str, str]]:
        """What stands before the last word, and the word with the space before it."""
        return self._items().selected(self.limit).made(self._pair)

    def _pair(self, row: Row) -> tuple[str, str]:
        text = prompt.text("text", self.text, row).rstrip()
        before, _, word = text.rpartition(" ")
        if not before.strip():
            raise ValueError("text has no two words")
        return before, f" {word}"
