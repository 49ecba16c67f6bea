"""Translation: BLEU, chrF and TER against references, and how much of the float model's own output is left."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from slimrun.evaluation import generation, language, prompt, statistics
from slimrun.evaluation.base import (
    LanguageModel,
    Outputs,
    Progress,
    Reader,
    Reference,
    at_least,
    finite,
    one_of,
    protocol_of,
)
from slimrun.evaluation.comparison import Margin, Report, Score, scored
from slimrun.evaluation.language import normalized
from slimrun.evaluation.metric import bleu, fidelity
from slimrun.evaluation.source import items
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.source.table import Row

PINNED = "udhr"
PINNED_LANGUAGES = ("en", "fr", "de", "es", "it", "pt", "zh", "ja", "ru")
BLEU_FLOOR = 5.0  # below it the output is no translation: such a score has nothing left to lose


@dataclass(frozen=True)
class Translation:
    """Sentences or paragraphs into another language; keys and defaults in conf/task/translation.yaml."""

    source: str = "en"
    target: str = "fr"
    path: str | None = None
    target_path: str | None = None
    hub: Hub | None = None
    limit: int | None = 20
    text: str = "{{ source }}"
    reference: str = "{{ target }}"
    prompt: str = (
        "Translate the following text from {{ source }} to {{ target }}. Answer with the translation only."
        "\n\n{{ text }}"
    )
    chat: bool = True
    system: str | None = None
    too_long: str = "refuse"
    max_new_tokens: int = 128
    batch: int = 20
    tokenizer: str | None = None
    margin_points: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if _pinned(self):
            for key in ("source", "target"):
                if normalized(getattr(self, key)) not in PINNED_LANGUAGES:
                    one_of(key, getattr(self, key), PINNED_LANGUAGES)
        if normalized(self.source) == normalized(self.target):
            raise ValueError(f"target={self.target} is the source language; allowed: another one")
        if self.tokenizer is not None:
            one_of("tokenizer", self.tokenizer, bleu.BLEU_TOKENIZERS)
        for key in ("limit", "max_new_tokens", "batch"):
            if getattr(self, key) is not None:
                at_least(key, getattr(self, key), 1)
        at_least("margin_points", self.margin_points, 0)
        one_of("too_long", self.too_long, generation.TOO_LONG)
        if self.target_path and not self.path:
            raise ValueError(
                f"target_path={self.target_path} is the second of two files; give the first with path=FILE"
            )
        for key in ("text", "reference", "prompt"):
            prompt.check(key, getattr(self, key))

    def check(self) -> None:
        """Read the pairs once, and refuse a tokenizer that cannot score the references."""
        references = [several[0] for _, several in self._pairs()]
        bleu.require_tokenizer(self._tokenizer(), references)
        try:
            bleu.translation_metrics(self.target, self._tokenizer())
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"tokenizer={self.tokenizer} is not installed: {' '.join(str(error).split())}") from None

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a prompt with its answer or its reference is longer than the model's context."""
        prompts, notes = self._encoded(model)
        for asked, (_, several) in zip(prompts, self._pairs()):
            reference = model.encode(several[0])
            if not reference:
                raise ValueError(f"target={self.target}: the tokenizer makes no token of {several[0]!r}")
            if len(asked) + len(reference) > model.context:
                raise ValueError(
                    f"target={self.target}: a prompt with its reference has {len(asked) + len(reference)} tokens, the "
                    f"model's context {model.context}; leave the task out, or give shorter texts with path=FILE"
                )
        return notes

    def texts(self) -> list[str]:
        """The sources."""
        return [source for source, _ in self._pairs()]

    def protocol(self) -> str:
        """Settings, prompt and the hash of the pairs."""
        return protocol_of(self, self._items().sha256, without=["tokenizer", "margin_points"])

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """texts: the translations; reference_log_probs: mean log-probability a token of each (first) reference.

        The second still moves where a model cannot translate and BLEU lies at the floor.
        """
        pairs = self._pairs()
        prompts, _ = self._encoded(model)
        outputs = generation.answers(model, prompts, self.batch, self.max_new_tokens, progress)
        likelihoods = [
            float(model.continuations(asked, [model.encode(several[0])])[0].mean(dtype=np.float64))
            for asked, (_, several) in zip(prompts, pairs)
        ]
        return {**outputs, "reference_log_probs": np.array(likelihoods)}

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """All four metrics for both, BLEU with a paired bootstrap, and BLEU of quantized against float output."""
        sources, references = map(list, zip(*self._pairs()))
        for outputs, model in ((float_outputs, "float"), (quant_outputs, "quantized")):
            finite(outputs, "reference_log_probs", name, model)
        was, now = float_outputs["texts"].tolist(), quant_outputs["texts"].tolist()
        scorers = bleu.translation_metrics(self.target, self._tokenizer())
        told: dict[str, float | str] = {}
        signatures = []
        for key, scorer in scorers.items():
            told[f"{name}/{key}_float"], _ = bleu.corpus_score(scorer, was, references)
            told[f"{name}/{key}_quant"], signature = bleu.corpus_score(scorer, now, references)
            signatures.append(f"{key}={signature}")
        signatures.append(self._signature(len(references)) + generation.dated(float_outputs))
        margin = Margin(self.margin_points, "BLEU")
        own, chance = _bleu(name, scorers["bleu"], (was, now), references, margin, "; ".join(signatures))
        likelihoods = [side["reference_log_probs"] for side in (float_outputs, quant_outputs)]
        reference = fidelity.perplexities(name, "reference perplexity", *likelihoods)
        flawed = generation.flaws(name, float_outputs, quant_outputs)
        told |= {
            f"{name}/reference_ppl_float": reference.float_value,
            f"{name}/reference_ppl_quant": reference.quant_value,
            f"{name}/p_randomization": chance,
            f"{name}/bleu_self": float(scorers["bleu"].corpus_score(now, [was]).score),
        }
        examples = generation.examples(sources, [several[0] for several in references], was, now)
        return Report({**told, **own.metrics("bleu")}, [own, reference, *flawed], examples)

    def _signature(self, items: int) -> str:
        return (
            f"direction:{self.source}-{self.target}|items:{items}|greedy|max_new_tokens:{self.max_new_tokens}|"
            f"batch:{self.batch}|bs:{statistics.RESAMPLES}|seed:{statistics.SEED}|chat:{self.chat}|too_long:{self.too_long}|"
            f"system:{self.system!r}|prompt:{self.prompt!r}|data:{self._items().sha256[:12]}"
        )

    def _tokenizer(self) -> str:
        return self.tokenizer or bleu.bleu_tokenizer(self.target)

    def _encoded(self, model: Reader) -> tuple[list[list[int]], list[str]]:
        prompting = generation.Prompting(self.chat, self.system, self.too_long)
        prompts = [self._prompt(source) for source, _ in self._pairs()]
        return generation.encoded(model, prompts, self.max_new_tokens, prompting)

    def _prompt(self, text: str) -> str:
        columns = {"source": language.name(self.source), "target": language.name(self.target), "text": text}
        return prompt.text("prompt", self.prompt, columns)

    def _items(self) -> Items:
        if self.path and self.target_path:
            return items.parallel(self.path, self.target_path)
        return items.items(self.path, self.hub, PINNED)

    def _pairs(self) -> list[tuple[str, list[str]]]:
        """Texts, and the translations that count as right."""
        return self._items().selected(self.limit).made(self._pair)

    def _pair(self, row: Row) -> tuple[str, list[str]]:
        if _pinned(self):  # a column a language
            row = {"source": row[normalized(self.source)], "target": row[normalized(self.target)]}
        return prompt.text("text", self.text, row), prompt.texts("reference", self.reference, row)


def _bleu(
    name: str,
    scorer: Any,
    answers: tuple[list[str], list[str]],
    references: list[list[str]],
    margin: Margin,
    signature: str,
) -> tuple[Score, float]:
    """BLEU of both models and its difference, from what each item contributes to it; p by randomization."""
    sides = [bleu.bleu_statistics(scorer, texts, references) for texts in answers]
    (before, after), (first, second) = statistics.jackknife(bleu.bleu_of, *sides)
    change = statistics.mean(second - first, after - before)
    intervals = (statistics.mean(first, before).interval, statistics.mean(second, after).interval)
    floor = f"baseline BLEU {before:.1f} is at the floor, below {BLEU_FLOOR:g}" if before < BLEU_FLOOR else ""
    row = scored(
        name, "BLEU", (before, after), intervals, change,
        margin=margin, items=len(references), floor=floor, signature=signature,
    )  # fmt: skip
    return row, statistics.randomization(bleu.bleu_of, *sides)


def _pinned(task: Translation) -> bool:
    """Whether the pairs are those that slimrun brings."""
    return not task.path and not task.hub
