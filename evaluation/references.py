"""What tasks share whose answers have references: how likely a model finds these, and what it writes itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from slimrun.evaluation import statistics, tokens
from slimrun.evaluation.base import LanguageModel, Outputs, Progress, Reader, at_least, batches
from slimrun.evaluation.comparison import Margin, Metrics, Score
from slimrun.evaluation.generation import NOISE_ITEMS, Generation, examples
from slimrun.evaluation.metric import fidelity
from slimrun.evaluation.source import items
from slimrun.evaluation.statistics import Values

T = TypeVar("T")

LIKELIHOOD = "likelihood"
REFERENCES = 4  # that are read at once, of about one length


@dataclass(frozen=True)
class Referenced(Generation):
    """Answers that have references: judged by how likely the model finds these, or by a metric of what it wrote.

    The likelihood moves long before a text does, and still where a model writes nothing that a metric could score.
    """

    generate: int | None = 12
    judged_by: str = LIKELIHOOD
    margin_pct: float = 5.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if self.generate is not None:
            at_least("generate", self.generate, 1)
        at_least("margin_pct", self.margin_pct, 0)

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a prompt with its answer or its reference is longer than the model's context."""
        prompts, notes = self.encoded(model)
        for asked, reference, (text, *_) in zip(prompts, self._expected(model), self.references()):
            if not reference:
                raise ValueError(f"prompt: the tokenizer makes no token of {text!r}")
            if len(asked) + len(reference) > model.context:
                raise ValueError(
                    f"prompt: one with its reference has {len(asked) + len(reference)} tokens, the model's context "
                    f"{model.context}; leave the task out, or give shorter texts with path=FILE"
                )
        return notes

    def answered(self, count: int) -> list[int]:
        """`generate` of them, evenly over all."""
        return items.evenly(count, min(count, self.generate or count))

    def spare(self, model: Reader) -> int:
        """Those of the longest reference."""
        return max(map(len, self._expected(model)))

    def references(self) -> list[list[str]]:
        """The texts that count as right, item by item."""
        raise NotImplementedError

    @property
    def by_likelihood(self) -> bool:
        """Whether the references' likelihood gets the verdict."""
        return self.judged_by == LIKELIHOOD

    def of_answers(self, values: list[T]) -> list[T]:
        """Those of the items that the model answers."""
        return [values[i] for i in self.answered(len(values))]

    def both(self, model: LanguageModel, progress: Progress, disturbed: bool) -> Outputs:
        """What `answers` and `likelihoods` say, and of the disturbed model `disturbed_answers`."""
        outputs = self.answers(model, progress) | self.likelihoods(model, disturbed)
        return outputs | (self.disturbed_answers(model) if disturbed else {})

    def likelihoods(self, model: LanguageModel, disturbed: bool) -> Outputs:
        """Of each item's first reference: reference_log_probs [n], the mean over its reference_tokens [n].

        Also vocabulary [1], the number of tokens that the head chooses from; and moves [k], what the first ones change
        by when the model is disturbed, if that is asked for.
        """
        texts = list(zip(self.encoded(model)[0], self._expected(model)))
        means, vocabulary = _mean_log_probs(model, texts)
        outputs: Outputs = {"reference_log_probs": means, "vocabulary": np.array([vocabulary])}
        outputs["reference_tokens"] = np.array([len(reference) for _, reference in texts])
        if disturbed:
            with model.disturbed() as moved:
                again = _mean_log_probs(model, texts[:NOISE_ITEMS])[0] if moved else np.zeros(0)
            if moved:
                outputs["moves"] = means[: len(again)] - again
        return outputs

    def _expected(self, model: Reader) -> list[list[int]]:
        """The tokens of each item's first reference, after its prompt or as the answer to a turn."""
        first = [several[0] for several in self.references()]
        if self.chat:
            return [model.encode(text) for text in first]
        return [tokens.continued(model, self._without_turn(asked), text) for asked, text in zip(self.prompts(), first)]

    def likelihood_row(self, name: str, before: Outputs, after: Outputs, signature: str) -> Score:
        """The perplexity of the references, over their tokens: those of one reference are alike."""
        count, empty = len(before["texts"]), int((before["texts"] == "").sum())
        references = len(before["reference_log_probs"])
        of = np.repeat(np.arange(references), before.get("reference_tokens", 1))
        return fidelity.perplexities(
            name,
            "reference perplexity",
            *(side["reference_log_probs"][of] for side in (before, after)),
            margin_pct=self.margin_pct if self.by_likelihood else None,
            chance=float(before.get("vocabulary", [np.inf])[0]),
            floor=f"{empty} of {count} baseline answers are empty" if 2 * empty > count else "",
            noise=statistics.noise_of_mean(after["moves"], references) if "moves" in after else None,
            signature=f"references:{references}|{signature}" if self.by_likelihood else "",
            clusters=of,
        )

    def rows(self, likelihood: Score, text: Score, key: str) -> tuple[list[Score], Metrics]:
        """Both rows, the one with the verdict first, and their keys; `key` is that of the texts' metric."""
        told = {
            f"{text.task}/reference_ppl_float": likelihood.float_value,
            f"{text.task}/reference_ppl_quant": likelihood.quant_value,
            f"{text.task}/{key}_float": text.float_value,
            f"{text.task}/{key}_quant": text.quant_value,
            f"{text.task}/{key}_p_value": text.p_value,
            f"{text.task}/{key}_noise": text.noise,
        }
        beside = {key: value for key, value in told.items() if value is not None}
        if self.by_likelihood:
            return [likelihood, replace(text, signature="")], beside | likelihood.metrics("reference_ppl")
        return [text, likelihood], beside | text.metrics(key)

    def samples(self, inputs: list[str], before: Outputs, after: Outputs) -> list[dict[str, str]]:
        """The items for a person to read: those with an answer, changed ones first; of the others the perplexities."""
        references = [several[0] for several in self.references()]
        sides = [side["texts"].tolist() for side in (before, after)]
        written = examples(self.of_answers(inputs), self.of_answers(references), *sides)
        numbers = set(self.answered(len(inputs)))
        ppl = [np.exp(-side["reference_log_probs"]) for side in (before, after)]
        told = [[f"perplexity of the reference {value:.2f}" for value in side] for side in ppl]
        return written + [
            {"input": inputs[i], "reference": references[i], "float": told[0][i], "quantized": told[1][i]}
            for i in np.argsort(-ppl[1] / ppl[0], kind="stable")
            if i not in numbers
        ]

    def margin(self, unit: str) -> Margin | None:
        """What the metric of the texts may lose, where it gets the verdict."""
        return None if self.by_likelihood else Margin(self.margin_points, unit)


def _mean_log_probs(model: LanguageModel, texts: Sequence[tuple[list[int], list[int]]]) -> tuple[Values, int]:
    """[n]: of each continuation after its prefix, both read in one pass, and the size of the vocabulary.

    Texts of about one length go together.
    """
    rows = [[*prefix, *after] for prefix, after in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    groups = list(batches(order, min(REFERENCES, len(rows))))
    # what stands behind a text changes nothing before it
    padded = [
        np.array([[*rows[i], *[0] * (len(rows[group[-1]]) - len(rows[i]))] for i in group]) for group, _ in groups
    ]
    means, vocabulary = np.empty(len(rows)), 0
    for (group, count), states in zip(groups, model.hiddens(padded)):
        for i, hidden in zip(group[:count], states):
            prefix, after = texts[i]
            scored = hidden[len(prefix) - 1 : len(rows[i]) - 1]
            means[i] = fidelity.token_log_probs(np.array(after), scored, model.log_probs).mean(dtype=np.float64)
        vocabulary = model.log_probs(states[0, :1]).shape[-1]
    return means, vocabulary
