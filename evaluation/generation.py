"""What tasks share whose answers are generated: prompts, answers in batches of one shape, how likely references are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from slimrun.evaluation.base import LanguageModel, Outputs, Progress, Reader, at_least, batches, one_of
from slimrun.evaluation.comparison import Margin, Metrics, Score, paired
from slimrun.evaluation.metric import fidelity
from slimrun.evaluation.source import items
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.statistics import Values

REFUSE, CUT = TOO_LONG = ("refuse", "cut")
LIKELIHOOD = "likelihood"
REFERENCES = 4  # that are read at once, of about one length
NOISE_ITEMS = 4  # that are answered again by the disturbed model, and whose references it reads


@dataclass(frozen=True)
class Generation:
    """Where prompts come from, how they are put to a model, how it answers: keys that tasks of generated text have."""

    path: str | None = None
    hub: Hub | None = None
    limit: int | None = 20
    chat: bool = True
    system: str | None = None
    too_long: str = REFUSE
    max_new_tokens: int = 128
    batch: int = 20
    margin_points: float = 5.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for key in ("limit", "max_new_tokens", "batch"):
            if getattr(self, key) is not None:
                at_least(key, getattr(self, key), 1)
        at_least("margin_points", self.margin_points, 0)
        one_of("too_long", self.too_long, TOO_LONG)

    def prompts(self) -> list[str]:
        """What the model is asked, item by item."""
        raise NotImplementedError

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a prompt with its answer is longer than the model's context; a note on those that are cut."""
        return self.encoded(model)[1]

    def encoded(self, model: Reader) -> tuple[list[list[int]], list[str]]:
        """The tokens of every prompt, and a note on those that lost their beginning.

        Raises ValueError when a prompt with its answer does not fit into the model's context, unless it is to be cut:
        cutting it silently would score an answer to another question.
        """
        tokens = [self._turn(model, prompt) for prompt in self.prompts()]
        if not all(tokens):
            raise ValueError("prompt: the tokenizer makes no token of one of the prompts")
        room = model.context - max(self.max_new_tokens, self.spare(model) if self.too_long == CUT else 0)
        beyond = sum(len(ids) > room for ids in tokens)
        if self.too_long == CUT and beyond and room > 0:
            note = f"too_long={CUT}: {beyond} of {len(tokens)} prompts lose their beginning, to {room} tokens"
            return [ids[-room:] for ids in tokens], [note]
        longest = max(map(len, tokens))
        if longest >= model.context:
            raise ValueError(
                f"prompt: {beyond} of {len(tokens)} are too long, the longest has {longest} tokens, the model's "
                f"context {model.context}; leave the task out, give shorter texts with path=FILE, or too_long={CUT}"
            )
        if longest + self.max_new_tokens > model.context:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} is out of range; allowed: 1 to {model.context - longest}, "
                f"the model's context of {model.context} less the longest prompt"
            )
        return tokens, []

    def spare(self, model: Reader) -> int:
        """Tokens that have to fit behind a prompt beside those of its answer."""
        return 0

    def answers(self, model: LanguageModel, progress: Progress) -> Outputs:
        """texts: greedy answers, stripped, in the order of the items; cut: which of them reached `max_new_tokens`.

        date: the one that the prompts state, if any. Prompts of about one length go together: less is padding.
        """
        tokens, _ = self.encoded(model)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        written: list[list[int]] = [[] for _ in tokens]
        done = 0
        for group, count in batches(order, self.batch):
            for i, ids in zip(group[:count], model.generate([tokens[i] for i in group], self.max_new_tokens)):
                written[i] = ids
            done += count
            progress(done, len(tokens))
        texts = [model.decode(ids).strip() for ids in written]
        cut = [len(ids) >= self.max_new_tokens for ids in written]
        outputs: Outputs = {"texts": np.array(texts, dtype=np.str_), "cut": np.array(cut)}  # saved without pickle
        return outputs | ({"date": np.array([model.prompt_date])} if model.prompt_date else {})

    def disturbed_answers(self, model: LanguageModel) -> Outputs:
        """again [k]: what the first items are answered when the model is disturbed; nothing where it cannot be."""
        tokens = self.encoded(model)[0][:NOISE_ITEMS]
        with model.disturbed() as moved:
            texts = [model.decode(ids).strip() for ids in model.generate(tokens, self.max_new_tokens)] if moved else []
        return {"again": np.array(texts, dtype=np.str_)} if moved else {}

    def how(self, outputs: Outputs) -> str:
        """What a signature says of how the answers came about, with the date that a chat template put into prompts."""
        dated = f"|date:{outputs['date'][0]}" if "date" in outputs else ""
        return (
            f"items:{len(outputs['texts'])}|greedy|max_new_tokens:{self.max_new_tokens}|batch:{self.batch}|"
            f"chat:{self.chat}|too_long:{self.too_long}|system:{self.system!r}|data:{self.items().sha256[:12]}{dated}"
        )

    def items(self) -> Items:
        """All there are."""
        return items.items(self.path, self.hub)

    def _turn(self, model: Reader, text: str) -> list[int]:
        """The tokens of a prompt: as a user's turn after a system's, or as plain text."""
        if self.chat:
            return model.encode_prompt(text, self.system or "")
        return [*model.opening, *model.encode(f"{self.system}\n\n{text}" if self.system else text)]


@dataclass(frozen=True)
class Referenced(Generation):
    """Answers that have references: judged by how likely the model finds these, or by a metric of what it wrote.

    The likelihood moves long before a text does, and still where a model writes nothing that a metric could score.
    """

    judged_by: str = LIKELIHOOD
    margin_pct: float = 10.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        at_least("margin_pct", self.margin_pct, 0)

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a prompt with its answer or its reference is longer than the model's context."""
        prompts, notes = self.encoded(model)
        for asked, (reference, *_) in zip(prompts, self.references()):
            tokens = model.encode(reference)
            if not tokens:
                raise ValueError(f"prompt: the tokenizer makes no token of {reference!r}")
            if len(asked) + len(tokens) > model.context:
                raise ValueError(
                    f"prompt: one with its reference has {len(asked) + len(tokens)} tokens, the model's context "
                    f"{model.context}; leave the task out, or give shorter texts with path=FILE"
                )
        return notes

    def spare(self, model: Reader) -> int:
        """Those of the longest reference."""
        return max(len(model.encode(several[0])) for several in self.references())

    def references(self) -> list[list[str]]:
        """The texts that count as right, item by item."""
        raise NotImplementedError

    @property
    def by_likelihood(self) -> bool:
        """Whether the references' likelihood gets the verdict."""
        return self.judged_by == LIKELIHOOD

    def likelihoods(self, model: LanguageModel, disturbed: bool) -> Outputs:
        """reference_log_probs [n]: mean log-probability a token of each item's first reference.

        Also vocabulary [1], the number of tokens that the head chooses from; and moves [k], what the first ones change
        by when the model is disturbed, if that is asked for.
        """
        prompts = self.encoded(model)[0]
        texts = list(zip(prompts, (model.encode(several[0]) for several in self.references())))
        means, vocabulary = _mean_log_probs(model, texts)
        outputs: Outputs = {"reference_log_probs": means, "vocabulary": np.array([vocabulary])}
        if disturbed:
            with model.disturbed() as moved:
                again = _mean_log_probs(model, texts[:NOISE_ITEMS])[0] if moved else np.zeros(0)
            if moved:
                outputs["moves"] = means[: len(again)] - again
        return outputs

    def likelihood_row(self, name: str, before: Outputs, after: Outputs, signature: str) -> Score:
        """The perplexity of the references."""
        empty = int((before["texts"] == "").sum())
        floor = (
            f"{empty} of {len(before['texts'])} baseline answers are empty" if 2 * empty > len(before["texts"]) else ""
        )
        return fidelity.perplexities(
            name,
            "reference perplexity",
            before["reference_log_probs"],
            after["reference_log_probs"],
            margin_pct=self.margin_pct if self.by_likelihood else None,
            chance=float(before.get("vocabulary", [np.inf])[0]),
            floor=floor,
            moves=after.get("moves"),
            signature=signature if self.by_likelihood else "",
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
    return [paired(task, name, *pair, higher_is_better=False) for name, pair in shares.items() if np.any(pair)]


def examples(
    inputs: Sequence[str], references: Sequence[str], was: Sequence[str], now: Sequence[str]
) -> list[dict[str, str]]:
    """The items for a person to read, those with a changed answer first."""
    order = sorted(range(len(inputs)), key=lambda i: was[i] == now[i])
    return [{"input": inputs[i], "reference": references[i], "float": was[i], "quantized": now[i]} for i in order]
