"""The last word of a text, as LAMBADA asks for it: does the model predict it, and how likely does it find it?"""

from dataclasses import dataclass, replace

import numpy as np

from slimrun.evaluation import prompt, tokens
from slimrun.evaluation.base import (
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
from slimrun.evaluation.comparison import Report
from slimrun.evaluation.metric import fidelity
from slimrun.evaluation.metric.accuracy import accuracy, within_margin
from slimrun.evaluation.source import items
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.source.table import Row
from slimrun.evaluation.statistics import Values, noise_of_mean
from slimrun.evaluation.tokens import CUT, REFUSE, TOO_LONG

NOISE_ITEMS = 5  # words that the disturbed model is asked for


@dataclass(frozen=True)
class LastWord:
    """Texts whose last word follows from what stands before it; keys and defaults in conf/task/lambada.yaml."""

    path: str | None = None
    hub: Hub | None = None
    limit: int | None = None
    text: str = "{{ text }}"
    prefix: str | None = None
    too_long: str = REFUSE
    margin_points: float = 5.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.limit is not None:
            at_least("limit", self.limit, 1)
        at_least("margin_points", self.margin_points, 0)
        one_of("too_long", self.too_long, TOO_LONG)
        prompt.check("text", self.text)

    def check(self) -> None:
        """Read the items once."""
        self._pairs()

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a text is longer than the model's context; a note on those that are cut."""
        return self._encoded(model)[1]

    def _encoded(self, model: Reader) -> tuple[list[tuple[list[int], list[int]]], list[str]]:
        """The tokens of each last word after those before it, and a note on texts that were cut."""
        front = tokens.front(model, self.prefix)
        asked: list[list[Prefixed]] = []
        for before, word in self._pairs():
            prefix, ids = [*front, *model.encode(before)], tokens.continued(model, before, word)
            if not prefix or not ids:
                raise ValueError(f"text: the tokenizer makes no token of {before!r} or of {word!r}")
            asked.append([(prefix, [ids])])
        fitting, notes = tokens.within(asked, front, model.context, self.too_long, "text")
        return [(list(prefix), list(ids)) for [(prefix, [ids])] in fitting], notes

    def texts(self) -> list[str]:
        """The texts."""
        return [before + word for before, word in self._pairs()]

    def protocol(self) -> str:
        """Settings and the hash of the items."""
        unless_cut = [] if self.too_long == CUT else ["too_long"]  # refusing changes no score
        return protocol_of(self, self._items().sha256, without=["margin_points", *unless_cut])

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """log_probs [n]: of the whole word; right [n]: whether each of its tokens is the most likely one; leads [n]: by
        how much at least they are, or the least of them is not.

        With a reference moves and lead_moves [k]: what the first of these change by when the model is disturbed.
        """
        asked, _ = self._encoded(model)
        outputs = _words(model, asked, progress)
        outputs |= tokens.kept(tokens.front(model, self.prefix))
        if reference is None:
            return outputs
        with model.disturbed() as moved:
            again = _words(model, asked[:NOISE_ITEMS], lambda done, total: None) if moved else {}
        moves = {"moves": "log_probs", "lead_moves": "leads"} if again else {}
        return outputs | {name: again[of] - outputs[of][: len(again[of])] for name, of in moves.items()}

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """Accuracy with a verdict, and the perplexity of the word."""
        finite(name, float_outputs, quant_outputs, "log_probs")
        was, now = float_outputs["right"], quant_outputs["right"]
        floor = within_margin(was, self.margin_points)
        cut = f"too_long:{CUT}|" if self.too_long == CUT else ""
        how = f"last-word|items:{len(was)}|{cut}{tokens.told(float_outputs)}|text:{self.text!r}"
        signature = signed(f"{how}|data:{self._items().sha256[:12]}", self.protocol())
        own, metrics = accuracy(name, was, now, margin_points=self.margin_points, floor=floor, signature=signature)
        noise = None
        if "moves" in quant_outputs:
            noise = noise_of_mean(quant_outputs["moves"], len(was))
            own = replace(own, noise=_undecided(quant_outputs["leads"], quant_outputs["lead_moves"]))
        word = fidelity.perplexities(
            name, "word perplexity", float_outputs["log_probs"], quant_outputs["log_probs"], noise=noise
        )
        metrics |= {f"{name}/word_ppl_float": word.float_value, f"{name}/word_ppl_quant": word.quant_value}
        order = sorted(range(len(was)), key=lambda i: bool(was[i] == now[i]))
        pairs, told = self._pairs(), ("another word", "the word")
        samples = [
            {"input": pairs[i][0], "reference": pairs[i][1], "float": told[int(was[i])], "quantized": told[int(now[i])]}
            for i in order
        ]
        return Report(metrics, [own, word], samples)

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


def _words(model: LanguageModel, asked: list[tuple[list[int], list[int]]], progress: Progress) -> Outputs:
    """log_probs, right and leads of these words, each after the tokens before it."""
    log_probs, right, leads = [], [], []
    hiddens = model.hiddens([np.array([prefix + ids]) for prefix, ids in asked])
    for done, ((prefix, ids), hidden) in enumerate(zip(asked, hiddens), start=1):
        scores = model.log_probs(hidden[0, len(prefix) - 1 : -1])
        places = (np.arange(len(ids)), np.array(ids))
        own = scores[places]
        log_probs.append(float(own.sum(dtype=np.float64)))
        right.append(bool((scores.argmax(axis=1) == ids).all()))
        others = scores.copy()
        others[places] = -np.inf
        leads.append(float((own - others.max(axis=1)).min()))
        progress(done, len(asked))
    return {"log_probs": np.array(log_probs), "right": np.array(right), "leads": np.array(leads)}


def _undecided(leads: Values, moves: Values) -> float:
    """Share of the words that rounding alone may make right or wrong: their lead is no larger."""
    return float((np.abs(leads) <= noise_of_mean(moves, 1)).mean())
