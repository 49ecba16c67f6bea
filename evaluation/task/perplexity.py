"""Perplexity of a text, and how far the quantized model's predictions are from the float model's."""

from dataclasses import dataclass

import numpy as np

from slimrun.evaluation import metrics, statistics, text
from slimrun.evaluation.base import (
    IntArray,
    LanguageModel,
    Outputs,
    Progress,
    Reader,
    Reference,
    Report,
    Score,
    at_least,
    batches,
    protocol_of,
)

PINNED = "wikipedia_evaluation"


@dataclass(frozen=True)
class Perplexity:
    """Token perplexity over equal windows; keys and defaults are explained in conf/task/perplexity.yaml.

    The pinned text gives the first window of each of many articles (one long article would measure one article);
    an own text is cut into consecutive windows. No token is put in front, and the first token of a window is not
    scored, so a window of T tokens gives T - 1 scores.
    """

    path: str | None = None
    windows: int = 32
    window: int = 512
    batch: int = 1
    margin_pct: float = 5.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        at_least("windows", self.windows, 1)
        at_least("window", self.window, 2)
        at_least("batch", self.batch, 1)
        at_least("margin_pct", self.margin_pct, 0)

    def check(self) -> None:
        """Read the text once."""
        self.texts()

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a window is longer than the model's context or the text; a note on windows that lack."""
        found = len(self._tokens(model))
        return [f"windows={self.windows} asked for, the text gives {found}"] if found < self.windows else []

    def texts(self) -> list[str]:
        """The documents that are cut into windows."""
        if self.path:
            return [text.read_text(self.path)]
        return [row["text"] for row in text.read_jsonl(text.pinned(PINNED), {"text": str})]

    def protocol(self) -> str:
        """Settings and the hash of the text."""
        return protocol_of(self, text.sha256(self._file()), without=["margin_pct"])

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """Float model: log_probs [W, T-1], hidden [W, T-1, H]. With a reference: log_probs, kl, agree [W, T-1]."""
        windows = self._tokens(model)
        collected: dict[str, list[np.ndarray]] = {}
        done = 0
        for batch, count in batches(list(windows), self.batch):
            ids = np.stack(batch)
            hidden = model.hidden(ids)[:count, :-1]
            targets, shape = ids[:count, 1:].ravel(), (count, self.window - 1)
            states = hidden.reshape(-1, hidden.shape[-1])
            if reference is None:
                scores = metrics.token_log_probs(targets, states, model.log_probs)
                parts: Outputs = {"log_probs": scores.reshape(shape), "hidden": hidden}
            else:
                float_states = reference.outputs["hidden"][done : done + count].reshape(-1, hidden.shape[-1])
                names = ("log_probs", "kl", "agree")
                values = metrics.divergence(targets, states, model.log_probs, float_states, reference.log_probs)
                parts = {name: value.reshape(shape) for name, value in zip(names, values)}
            for name, part in parts.items():
                collected.setdefault(name, []).append(part)
            done += count
            progress(done, len(windows))
        return {name: np.concatenate(parts) for name, parts in collected.items()}

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """Perplexities, their difference paired by window, and the fidelity to the float model."""
        scored = (float_outputs["log_probs"], quant_outputs["log_probs"])
        # windows are equally long, so the mean over windows is the mean over tokens
        losses = [-log_probs.mean(axis=1, dtype=np.float64) for log_probs in scored]
        change = statistics.paired_difference(*losses)
        value, low, high = (100 * float(np.expm1(x)) for x in (change.value, change.low, change.high))
        perplexities = [metrics.perplexity(log_probs) for log_probs in scored]
        intervals = [tuple(np.exp(statistics.mean_interval(loss)).tolist()) for loss in losses]
        fidelity = f"fidelity{name.removeprefix('perplexity')}"
        report: dict[str, float | str] = {
            f"{name}/float": perplexities[0],
            f"{name}/quant": perplexities[1],
            f"{name}/delta_pct": value,
            f"{name}/ci_low": low,
            f"{name}/ci_high": high,
            f"{name}/p_value": change.p_value,
            f"{name}/detectable_pct": 100 * float(np.expm1(change.detectable)),
            f"{name}/verdict": statistics.verdict(low, high, self.margin_pct, "%"),
            f"{name}/signature": self._signature(len(losses[0])),
        }
        if "kl" in quant_outputs:
            kl = quant_outputs["kl"]
            report[f"{fidelity}/kl_mean"] = float(kl.mean(dtype=np.float64))
            report[f"{fidelity}/kl_median"] = float(np.median(kl))
            report[f"{fidelity}/kl_p99"] = float(np.quantile(kl, 0.99))
            report[f"{fidelity}/top1_agreement"] = float(quant_outputs["agree"].mean())
        score = Score(name, perplexities[0], intervals[0], perplexities[1], intervals[1], higher_is_better=False)
        return Report(report, [score])

    def _signature(self, windows: int) -> str:
        source = f"{text.sha256(self._file())[:12]}"
        return (
            f"unit:token|windows:{windows}|window:{self.window}|stride:{self.window}|bos:no|unscored:first|"
            f"batch:{self.batch}|kl:exact|text:{source}"
        )

    def _file(self) -> str:
        return self.path or str(text.pinned(PINNED))

    def _tokens(self, model: Reader) -> IntArray:
        """The windows as token ids [W, T]: as many as asked for, fewer if the text ends before, at least one."""
        if self.window > model.context:
            raise ValueError(
                f"window={self.window} is out of range; allowed: 2 to {model.context}, the model's context"
            )
        found: list[list[int]] = []
        longest = 0
        for document in self.texts():
            ids = model.encode(document)
            longest = max(longest, len(ids))
            # of an article the first window, of an own text all of them
            ends = range(self.window, len(ids) + 1, self.window) if self.path else [self.window]
            found += [ids[end - self.window : end] for end in ends if end <= len(ids)]
            if len(found) >= self.windows:
                break
        if not found:
            if longest < 2:
                raise ValueError("path: the tokenizer makes no two tokens of the text; give a longer one")
            raise ValueError(f"window={self.window} is out of range; allowed: 2 to {longest}, the tokens of the text")
        return np.array(found[: self.windows], dtype=np.int64)
