"""Translation: how likely references are, BLEU, chrF and TER, and how much of the float model's own output is left."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slimrun.evaluation import language, prompt, statistics
from slimrun.evaluation.base import LanguageModel, Outputs, Progress, Reference, finite, one_of, protocol_of, signed
from slimrun.evaluation.comparison import Margin, Report, Score, scored
from slimrun.evaluation.generation import flaws
from slimrun.evaluation.language import normalized
from slimrun.evaluation.metric import bleu
from slimrun.evaluation.references import LIKELIHOOD, Referenced
from slimrun.evaluation.source import items
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.source.table import Row

PINNED = "udhr"
PINNED_LANGUAGES = ("en", "fr", "de", "es", "it", "pt", "zh", "ja", "ru")
BLEU_FLOOR = 5.0  # below it the output is no translation: such a score has nothing left to lose
JUDGES = (LIKELIHOOD, "bleu")


@dataclass(frozen=True)
class Translation(Referenced):
    """Sentences or paragraphs into another language; keys and defaults in conf/task/translation.yaml."""

    limit: int | None = None
    source: str = "fr"
    target: str = "en"
    target_path: str | None = None
    text: str = "{{ source }}"
    reference: str = "{{ target }}"
    prompt: str = (
        "Translate the following text from {{ source }} to {{ target }}. Answer with the translation only."
        "\n\n{{ text }}"
    )
    tokenizer: str | None = None
    margin_points: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        one_of("judged_by", self.judged_by, JUDGES)
        if _pinned(self):
            for key in ("source", "target"):
                if normalized(getattr(self, key)) not in PINNED_LANGUAGES:
                    one_of(key, getattr(self, key), PINNED_LANGUAGES)
        if normalized(self.source) == normalized(self.target):
            raise ValueError(f"target={self.target} is the source language; allowed: another one")
        if self.tokenizer is not None:
            one_of("tokenizer", self.tokenizer, bleu.BLEU_TOKENIZERS)
        if self.target_path is not None and self.path is None:
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

    def texts(self) -> list[str]:
        """The sources."""
        return [source for source, _ in self._pairs()]

    def prompts(self) -> list[str]:
        """What is to be translated, and to do so."""
        columns = {"source": language.name(self.source), "target": language.name(self.target)}
        return [prompt.text("prompt", self.prompt, {**columns, "text": source}) for source, _ in self._pairs()]

    def references(self) -> list[list[str]]:
        """The translations that count as right."""
        return [several for _, several in self._pairs()]

    def protocol(self) -> str:
        """Settings, prompt and the hash of the pairs."""
        return protocol_of(self, self.items().sha256, without=["tokenizer", "judged_by", "margin_pct", "margin_points"])

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """What `both` says."""
        return self.both(model, progress, disturbed=reference is not None)

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """The perplexity of the references, four metrics of the answers, and BLEU of quantized against float output."""
        references = self.of_answers(self.references())
        finite(name, float_outputs, quant_outputs, "reference_log_probs")
        was, now = float_outputs["texts"].tolist(), quant_outputs["texts"].tolist()
        scorers = bleu.translation_metrics(self.target, self._tokenizer())
        told: dict[str, float | str] = {}
        signatures = []
        for key, scorer in scorers.items():
            told[f"{name}/{key}_float"], _ = bleu.corpus_score(scorer, was, references)
            told[f"{name}/{key}_quant"], signature = bleu.corpus_score(scorer, now, references)
            signatures.append(f"{key}={signature}")
        how = f"direction:{self.source}-{self.target}|judged:{self.judged_by}|prompt:{self.prompt!r}"
        signature = signed("; ".join([*signatures, f"{how}|{self.how(float_outputs)}"]), self.protocol())
        likelihood = self.likelihood_row(name, float_outputs, quant_outputs, signature)
        again = quant_outputs["again"].tolist() if "again" in quant_outputs else None
        text, chance = _bleu(name, scorers["bleu"], (was, now, again), references, self.margin("BLEU"), signature)
        rows, metrics = self.rows(likelihood, text, "bleu")
        told[f"{name}/bleu_self"] = float(scorers["bleu"].corpus_score(now, [was]).score)
        if text.p_value is not None:
            told[f"{name}/p_randomization"] = chance
        rows += flaws(name, float_outputs, quant_outputs)
        return Report(told | metrics, rows, self.samples(self.texts(), float_outputs, quant_outputs))

    def items(self) -> Items:
        """All there are."""
        if self.path is not None and self.target_path is not None:
            return items.parallel(self.path, self.target_path)
        return items.items(self.path, self.hub, PINNED)

    def _tokenizer(self) -> str:
        return self.tokenizer or bleu.bleu_tokenizer(self.target)

    def _pairs(self) -> list[tuple[str, list[str]]]:
        """Texts, and the translations that count as right."""
        return self.items().selected(self.limit).made(self._pair)

    def _pair(self, row: Row) -> tuple[str, list[str]]:
        if _pinned(self):  # a column a language
            row = {"source": row[normalized(self.source)], "target": row[normalized(self.target)]}
        return prompt.text("text", self.text, row), prompt.texts("reference", self.reference, row)


def _bleu(
    name: str,
    scorer: Any,
    answers: tuple[list[str], list[str], list[str] | None],
    references: list[list[str]],
    margin: Margin | None,
    signature: str,
) -> tuple[Score, float]:
    """BLEU of both models and its difference, from what each item contributes to it; p by randomization.

    The third of the answers are those of the disturbed model to the first items: how far BLEU moves by itself.
    """
    sides = [bleu.bleu_statistics(scorer, texts, references) for texts in answers[:2]]
    (before, after), (first, second) = statistics.jackknife(bleu.bleu_of, *sides)
    change = statistics.mean(second - first, after - before, reach=(before, 100 - before))
    intervals = (statistics.mean(first, before).interval, statistics.mean(second, after).interval)
    floor = f"baseline BLEU {before:.1f} is at the floor, below {BLEU_FLOOR:g}" if before < BLEU_FLOOR else ""
    row = scored(
        name, "BLEU", (before, after), intervals, change,
        margin=margin, items=len(references), floor=floor, signature=signature,
    )  # fmt: skip
    if answers[2] is not None:
        again = bleu.bleu_statistics(scorer, answers[2], references[: len(answers[2])])
        moved = [bleu.bleu_of(sides[1].sum(axis=0) - own + other) - after for own, other in zip(sides[1], again)]
        items = len(references)  # what an item moves BLEU by counts as often as a mean of items would
        row = replace(row, noise=statistics.noise_of_mean(items * np.array(moved), items))
    return row, statistics.randomization(bleu.bleu_of, *sides)


def _pinned(task: Translation) -> bool:
    """Whether the pairs are those that slimrun brings."""
    return task.path is None and task.hub is None
