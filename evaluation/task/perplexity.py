"""Perplexity of a text, and how far the quantized model's predictions are from the float model's."""

from dataclasses import dataclass

import numpy as np

from slimrun.evaluation import prompt, tokens
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
)
from slimrun.evaluation.comparison import Report
from slimrun.evaluation.metric import fidelity
from slimrun.evaluation.source import file, items, table
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.source.items import Items

NOISE_WINDOWS = 2  # of 32: 6 % of the time
PINNED = {"wikipedia": "wikipedia_evaluation", "stories": "stories"}


@dataclass(frozen=True)
class Perplexity:
    """Token perplexity over equal windows; keys and defaults are explained in conf/task/perplexity.yaml.

    The pinned text gives the first window of each of many articles (one long article would measure one article);
    an own text is cut into consecutive windows. The first token of a window is not
    scored, so a window of T tokens gives T - 1 scores.
    """

    data: str | None = "wikipedia"
    path: str | None = None
    hub: Hub | None = None
    text: str = "{{ text }}"
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

    def check(self) -> None:
        """Read the text once."""
        self.texts()

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a window is longer than the model's context or the text; a note on windows that lack."""
        given = len(self._tokens(model))
        return [f"windows={self.windows} asked for, the text gives {given}"] if given < self.windows else []

    def texts(self) -> list[str]:
        """The documents that are cut into windows."""
        own = table.read_rows_or_text(self.path) if self.path else None
        if isinstance(own, str):
            return [own]
        documents = self._items().made(lambda row: prompt.filled("text", self.text, row))
        return ["\n\n".join(documents)] if self.path or self.hub else documents

    def protocol(self) -> str:
        """Settings and the hash of the text."""
        return protocol_of(self, self._sha256(), without=["data", "margin_pct"])

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """Float model: log_probs [W, T-1], hidden [W, T-1, H]. With a reference: log_probs, kl, agree [W, T-1], and
        moves [k]: by how much rounding alone moves the loss of the first windows.

        Either: vocabulary [1], the number of tokens that the head chooses from.
        """
        windows, before = self._tokens(model), tokens.front(model, self.prefix)
        collected: dict[str, list[np.ndarray]] = {}
        done = 0
        groups = [(np.stack(batch), count) for batch, count in batches(list(windows), self.batch)]
        for (ids, count), whole in zip(groups, model.hiddens([_behind(before, ids) for ids, _ in groups])):
            hidden = whole[:count, len(before) : -1]
            targets, shape = ids[:count, 1:].ravel(), (count, self.window - 1)
            states = hidden.reshape(-1, hidden.shape[-1])
            if reference is None:
                scores = fidelity.token_log_probs(targets, states, model.log_probs)
                parts: Outputs = {"log_probs": scores.reshape(shape), "hidden": hidden}
            else:
                float_states = reference.outputs["hidden"][done : done + count].reshape(-1, hidden.shape[-1])
                names = ("log_probs", "kl", "agree")
                values = fidelity.divergence(targets, states, model.log_probs, float_states, reference.log_probs)
                parts = {name: value.reshape(shape) for name, value in zip(names, values)}
            for name, part in parts.items():
                collected.setdefault(name, []).append(part)
            done += count
            progress(done, len(windows))
        vocabulary = np.array([model.log_probs(states[:1]).shape[-1]])
        outputs = {name: np.concatenate(parts) for name, parts in collected.items()} | {"vocabulary": vocabulary}
        outputs |= tokens.kept(before)
        return outputs | (
            _moves(model, before, windows[:NOISE_WINDOWS], self.batch, outputs["log_probs"]) if reference else {}
        )

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """Perplexities, their difference paired by window, and the fidelity to the float model."""
        log_probs = [side["log_probs"] for side in (float_outputs, quant_outputs)]
        own = fidelity.perplexities(
            name,
            "perplexity",
            *log_probs,
            margin_pct=self.margin_pct,
            chance=float(float_outputs.get("vocabulary", [np.inf])[0]),
            moves=quant_outputs.get("moves"),
            signature=self._signature(len(log_probs[0]), tokens.told(float_outputs)),
        )
        if "kl" not in quant_outputs:
            return Report(own.metrics(), [own])
        kl = quant_outputs["kl"]
        group = f"fidelity{name.removeprefix('perplexity')}" if name.startswith("perplexity") else f"fidelity_{name}"
        told = {
            f"{group}/kl_mean": float(kl.mean(dtype=np.float64)),
            f"{group}/kl_median": float(np.median(kl)),
            f"{group}/kl_p99": float(np.quantile(kl, 0.99)),
            f"{group}/top1_agreement": float(quant_outputs["agree"].mean()),
        }
        return Report({**own.metrics(), **told}, [own, *fidelity.divergences(name, float_outputs, quant_outputs)])

    def _signature(self, windows: int, front: str) -> str:
        return (
            f"unit:token|windows:{windows}|window:{self.window}|stride:{self.window}|{front}|unscored:first|"
            f"batch:{self.batch}|kl:exact|text:{self._sha256()[:12]}"
        )

    def _sha256(self) -> str:
        return file.sha256(self.path) if self.path else self._items().sha256

    def _items(self) -> Items:
        return items.items(self.path, self.hub, PINNED[self.data] if self.data else None)

    def _tokens(self, model: Reader) -> IntArray:
        """The windows as token ids [W, T]: as many as asked for, fewer if the text ends before, at least one."""
        room = model.context - len(tokens.front(model, self.prefix))
        if self.window > room:
            less = "" if room == model.context else f" less the {model.context - room} tokens before each window"
            raise ValueError(f"window={self.window} is out of range; allowed: 2 to {room}, the model's context{less}")
        windows: list[list[int]] = []
        longest = 0
        for document in self.texts():
            ids = model.encode(document)
            longest = max(longest, len(ids))
            # of an article the first window, of an own text all of them
            ends = range(self.window, len(ids) + 1, self.window) if self.path or self.hub else [self.window]
            windows += [ids[end - self.window : end] for end in ends if end <= len(ids)]
            if len(windows) >= self.windows:
                break
        if not windows:
            if longest < 2:
                raise ValueError("path: the tokenizer makes no two tokens of the text; give a longer one")
            raise ValueError(f"window={self.window} is out of range; allowed: 2 to {longest}, the tokens of the text")
        return np.array(windows[: self.windows], dtype=np.int64)


def _behind(before: list[int], ids: IntArray) -> IntArray:
    """Each row of tokens [B, T] after the tokens `before`."""
    return np.concatenate([np.tile(np.array(before, dtype=np.int64), (len(ids), 1)), ids], axis=1)


def _moves(model: LanguageModel, before: list[int], windows: IntArray, batch: int, log_probs: FloatArray) -> Outputs:
    """What the loss of these windows changes by when the model is disturbed; nothing where it cannot be."""
    moves = []
    with model.disturbed() as moved:
        for some, count in batches(list(windows), batch) if moved else ():
            ids = np.stack(some)
            whole = model.hidden(_behind(before, ids))[:, len(before) : -1]  # in one go: each window is disturbed once
            hidden = whole[:count]
            states, targets = hidden.reshape(-1, hidden.shape[-1]), ids[:count, 1:].ravel()
            moves.append(fidelity.token_log_probs(targets, states, model.log_probs).reshape(count, -1))
    if not moved:
        return {}
    again = np.concatenate(moves)
    return {"moves": (log_probs[: len(again)] - again).mean(axis=1, dtype=np.float64)}
