"""Perplexity of a text, and how far the quantized model's predictions are from the float model's."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import ceil

import numpy as np

from slimrun.evaluation import prompt, statistics, tokens, windows
from slimrun.evaluation.base import (
    FloatArray,
    IntArray,
    LanguageModel,
    Outputs,
    Progress,
    Reader,
    Reference,
    at_least,
    batches,
    one_of,
    protocol_of,
    signed,
)
from slimrun.evaluation.comparison import Report
from slimrun.evaluation.metric import fidelity
from slimrun.evaluation.source import file, items, table
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.windows import Windows

NOISE_WINDOWS = 2  # of 32: 6 % of the time; whole batches, of the shape that was measured
PER_TOKEN = ("hidden", "top", "negentropy", "pull")  # of the float model
SHOWN = 80  # characters of a document, to tell which one it is
PINNED = {"wikipedia": "wikipedia_evaluation", "stories": "stories"}


@dataclass(frozen=True)
class Perplexity:
    """Token perplexity over equal windows; keys and defaults are explained in conf/task/perplexity.yaml.

    The pinned text gives the first window of each of many articles (one long article would measure one article);
    of an own text windows are taken evenly over all of it, and those of one document count as one observation. The
    first token of a window is not scored, so a window of T tokens gives T - 1 scores.
    """

    data: str | None = "wikipedia"
    path: str | None = None
    hub: Hub | None = None
    text: str = "{{ text }}"
    document: str | None = None
    prefix: str | None = None
    windows: int = 32
    window: int = 512
    batch: int = 1
    margin_pct: float = 5.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.data is not None:
            one_of("data", self.data, list(PINNED))
        at_least("windows", self.windows, 1)
        at_least("window", self.window, 2)
        at_least("batch", self.batch, 1)
        at_least("margin_pct", self.margin_pct, 0)
        prompt.check("text", self.text)
        prompt.check_pattern("document", self.document)

    def check(self) -> None:
        """Read the text once."""
        self.texts()

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a window is longer than the model's context or the text; notes on windows and documents."""
        given = len(self._windows(model).ids)
        notes = [f"windows={self.windows} asked for, the text gives {given}"] if given < self.windows else []
        return notes + self._paragraphs(model)

    def _paragraphs(self, model: Reader) -> list[str]:
        """A note where what was taken for documents may be the paragraphs of one."""
        if self.path is None or self.document:
            return []
        whole = table.read_rows_or_text(self.path)
        parts = windows.by_empty_lines(whole) if isinstance(whole, str) else []
        if len(parts) < 2 or len(model.encode(str(whole))) >= self.window * len(parts):
            return []
        return [
            f"path={self.path}: its {len(parts)} documents, each of which counts for itself, are shorter than a window"
            "; if an empty line begins a paragraph only, say where a document begins: document=PATTERN"
        ]

    def texts(self) -> list[str]:
        """The documents that are cut into windows."""
        return self._documents()[1]

    def _documents(self) -> tuple[str, list[str]]:
        """The whole text, and the documents that it is made of."""
        own = table.read_rows_or_text(self.path) if self.path is not None else None
        if isinstance(own, str):
            return own, windows.documents(own, self.document)
        rows = self._items().made(lambda row: prompt.filled("text", self.text, row))
        whole = "\n\n".join(rows)
        return whole, windows.documents(whole, self.document) if self.document else rows

    def protocol(self) -> str:
        """Settings and the hash of the text."""
        return protocol_of(self, self._sha256(), without=["data", "margin_pct"])

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """Float model: what `fidelity.kept_of` says, [W, T-1] and [W, T-1, H]. With a reference: log_probs, kl, agree
        [W, T-1], and moves [k]: by how much rounding alone moves the loss of the first windows.

        Either: documents [W], which one each window is from; vocabulary [1], the number of tokens that the head
        chooses from; head [1], the hash of its rows where the logits are but their product with the states.
        """
        cut, before = self._windows(model), tokens.front(model, self.prefix)
        rows = model.head_rows()
        head = sha256(np.ascontiguousarray(rows).data).hexdigest() if rows is not None else ""
        same_head = reference is not None and bool(head) and reference.outputs["head"][0] == head
        collected: dict[str, list[np.ndarray]] = {}
        done = 0
        groups = [(np.stack(batch), count) for batch, count in batches(list(cut.ids), self.batch)]
        for (ids, count), whole in zip(groups, model.hiddens([_behind(before, ids) for ids, _ in groups])):
            states, targets = _scored(whole, ids, count, len(before))
            if reference is None:
                parts = fidelity.kept_of(targets, states, model.log_probs, rows)
            else:
                part = {name: _flat(reference.outputs[name][done : done + count]) for name in PER_TOKEN
                        if name in reference.outputs}  # fmt: skip
                parts = fidelity.divergence(
                    targets, states, model.log_probs, part, reference.log_probs, same_head=same_head
                )
            for name, values in parts.items():
                collected.setdefault(name, []).append(values.reshape(count, self.window - 1, *values.shape[1:]))
            done += count
            progress(done, len(cut.ids))
        outputs: Outputs = {name: np.concatenate(parts) for name, parts in collected.items()}
        outputs |= {"documents": cut.documents, "head": np.array([head]), **tokens.kept(before)}
        outputs["vocabulary"] = np.array([model.log_probs(states[:1]).shape[-1]])
        if reference is None:
            return outputs
        return outputs | _moves(model, before, groups[: ceil(NOISE_WINDOWS / self.batch)], outputs["log_probs"])

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """Perplexities, their difference paired by window, and the fidelity to the float model."""
        log_probs = [side["log_probs"] for side in (float_outputs, quant_outputs)]
        clusters, moves = float_outputs["documents"], quant_outputs.get("moves")
        noise = None if moves is None else statistics.noise_of_mean(moves, len(clusters))
        own = fidelity.perplexities(
            name,
            "perplexity",
            *log_probs,
            margin_pct=self.margin_pct,
            chance=float(float_outputs.get("vocabulary", [np.inf])[0]),
            noise=noise,
            signature=signed(self._signature(float_outputs), self.protocol()),
            clusters=clusters,
        )
        if "kl" not in quant_outputs:
            return Report(own.metrics(), [own])
        group = f"fidelity{name.removeprefix('perplexity')}" if name.startswith("perplexity") else f"fidelity_{name}"
        told = fidelity.token_metrics(group, float_outputs, quant_outputs, clusters)
        rows = fidelity.divergences(name, float_outputs, quant_outputs, clusters)
        samples = _samples(self._documents()[1], float_outputs, quant_outputs)
        return Report({**own.metrics(), **told}, [own, *rows], samples)

    def _signature(self, outputs: Outputs) -> str:
        count, clusters = len(outputs["documents"]), len(np.unique(outputs["documents"]))
        return (
            f"unit:token|windows:{count}|window:{self.window}|spread:{self.windows}|documents:{clusters}|"
            f"{tokens.told(outputs)}|unscored:first|batch:{self.batch}|kl:exact|text:{self._sha256()[:12]}"
        )

    def _sha256(self) -> str:
        return self._items().sha256 if self.path is None else file.sha256(self.path)

    def _items(self) -> Items:
        return items.items(self.path, self.hub, PINNED[self.data] if self.data else None)

    def _windows(self, model: Reader) -> Windows:
        """As many windows as asked for, fewer if the text has no more, at least one; ValueError when it has none."""
        room = model.context - len(tokens.front(model, self.prefix))
        if self.window > room:
            less = "" if room == model.context else f" less the {model.context - room} tokens before each window"
            raise ValueError(f"window={self.window} is out of range; allowed: 2 to {room}, the model's context{less}")
        text, documents = self._documents()
        if self.path or self.hub:
            cut = windows.spread(model.encode, text, documents, self.window, self.windows)
        else:
            cut = windows.first_of_each(model.encode, documents, self.window, self.windows)
        if len(cut.ids):
            return cut
        longest = len(model.encode(text)) if self.path or self.hub else max(len(model.encode(one)) for one in documents)
        if longest < 2:
            raise ValueError("path: the tokenizer makes no two tokens of the text; give a longer one")
        raise ValueError(f"window={self.window} is out of range; allowed: 2 to {longest}, the tokens of the text")


def _samples(documents: Sequence[str], before: Outputs, after: Outputs) -> list[dict[str, str]]:
    """Window by window, those first that lost most: its document, and what either model makes of it."""
    lost = (before["log_probs"] - after["log_probs"]).mean(axis=1)
    return [
        {
            "input": documents[before["documents"][i]].strip()[:SHOWN],
            "reference": "",
            "float": f"perplexity {fidelity.perplexity(before['log_probs'][i]):.2f}",
            "quantized": f"perplexity {fidelity.perplexity(after['log_probs'][i]):.2f}",
            "document": str(before["documents"][i] + 1),
            "KL": f"{after['kl'][i].mean():.4f}",
            "same top token": f"{after['agree'][i].mean():.1%}",
        }
        for i in np.argsort(-lost, kind="stable")
    ]


def _behind(before: list[int], ids: IntArray) -> IntArray:
    """Each row of tokens [B, T] after the tokens `before`."""
    return np.concatenate([np.tile(np.array(before, dtype=np.int64), (len(ids), 1)), ids], axis=1)


def _scored(whole: FloatArray, ids: IntArray, count: int, front: int) -> tuple[FloatArray, IntArray]:
    """The states [N, H] before the scored tokens [N] of the first `count` windows of a batch, and these tokens."""
    hidden = whole[:count, front:-1]
    return hidden.reshape(-1, hidden.shape[-1]), ids[:count, 1:].ravel()


def _flat(values: FloatArray) -> FloatArray:
    """Values of windows [w, T-1, ...] token by token."""
    return values.reshape(-1, *values.shape[2:])


def _moves(
    model: LanguageModel, before: list[int], groups: list[tuple[IntArray, int]], log_probs: FloatArray
) -> Outputs:
    """What the loss of the windows of these batches, the first ones, changes by when the model is disturbed; nothing
    where it cannot be."""
    moves = []
    with model.disturbed() as moved:
        for ids, count in groups if moved else ():
            whole = model.hidden(_behind(before, ids))  # in one go: each window is disturbed once
            states, targets = _scored(whole, ids, count, len(before))
            moves.append(fidelity.token_log_probs(targets, states, model.log_probs).reshape(count, -1))
    if not moved:
        return {}
    again = np.concatenate(moves)
    return {"moves": (log_probs[: len(again)] - again).mean(axis=1, dtype=np.float64)}
