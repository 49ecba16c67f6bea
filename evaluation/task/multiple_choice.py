"""Multiple choice by likelihood: the answer is the option the model finds most likely after the question."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slimrun.evaluation import statistics
from slimrun.evaluation.base import (
    LanguageModel,
    Outputs,
    Progress,
    Reader,
    Reference,
    at_least,
    one_of,
    protocol_of,
)
from slimrun.evaluation.comparison import SAMPLES, Margin, Report, scored
from slimrun.evaluation.prompt import fills
from slimrun.evaluation.source.file import read_jsonl, select, sha256
from slimrun.evaluation.source.pinned import pinned
from slimrun.evaluation.statistics import Values

Hits = npt.NDArray[np.bool_]  # which items were answered right

PINNED = ("mmlu", "socialiqa")


@dataclass(frozen=True)
class MultipleChoice:
    """Questions with options; keys and defaults are explained in conf/task/multiple_choice.yaml.

    The option's text is scored, not its letter: models of a few hundred million parameters cannot work with
    letters, and a shift between letters says nothing about knowledge.
    """

    data: str = "mmlu"
    path: str | None = None
    limit: int = 100
    prompt: str = "Question: {question}\nAnswer:"
    normalize: bool = False
    margin_points: float = 5.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        one_of("data", self.data, PINNED)
        at_least("limit", self.limit, 1)
        at_least("margin_points", self.margin_points, 0)
        fills("prompt", self.prompt, ["question"])

    def check(self) -> None:
        """Read the items once."""
        self._items()

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a question with its longest option is longer than the model's context."""
        longest = 0
        for item in self._items():
            prefix, options = self._tokens(model, item)
            if not prefix or not all(options):
                raise ValueError(f"prompt: the tokenizer makes no token of {item['question']!r} or of an option")
            longest = max(longest, len(prefix) + max(map(len, options)))
        if longest > model.context:
            raise ValueError(
                f"prompt: the longest question with an option has {longest} tokens, the model's context "
                f"{model.context}; leave the task out, or give shorter ones with path=FILE"
            )
        return []

    def texts(self) -> list[str]:
        """The questions."""
        return [item["question"] for item in self._items()]

    def protocol(self) -> str:
        """Settings, prompt and the hash of the items."""
        return protocol_of(self, sha256(self._file()), without=["data", "normalize", "margin_points"])

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """log_probs: the summed log-probability of every option, item after item in one row."""
        items = self._items()
        sums: list[float] = []
        for done, item in enumerate(items, start=1):
            prefix, options = self._tokens(model, item)
            sums += [float(scores.sum(dtype=np.float64)) for scores in model.continuations(prefix, options)]
            progress(done, len(items))
        return {"log_probs": np.array(sums, dtype=np.float64)}

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """Accuracy of both, plain and per character, flips in both directions, exact McNemar."""
        items = self._items()
        answers = np.array([item["answer"] for item in items])
        sides = (float_outputs["log_probs"], quant_outputs["log_probs"])
        chosen = {rule: [self._choices(items, side, rule) for side in sides] for rule in (False, True)}
        right = {rule: [choice == answers for choice in pair] for rule, pair in chosen.items()}
        was, now = right[self.normalize]
        lost, gained = int((was & ~now).sum()), int((~was & now).sum())
        change = statistics.proportion_difference(lost, gained, len(items))
        intervals = [statistics.proportion_interval(int(hits.sum()), len(items)) for hits in (was, now)]
        own = scored(
            name,
            "accuracy",
            (float(was.mean()), float(now.mean())),
            (intervals[0], intervals[1]),
            change,
            margin=Margin(self.margin_points, "points of accuracy", 100),
            floor=self._floor(items, was),
            signature=self._signature(items),
        )
        metrics = own.metrics("accuracy")
        for rule, label in ((False, "plain"), (True, "normalized")):
            for side, hits in zip(("float", "quant"), right[rule]):
                metrics[f"{name}/accuracy_{label}_{side}"] = float(hits.mean())
        for side, log_probs in zip(("float", "quant"), sides):
            metrics[f"{name}/answer_log_prob_{side}"] = self._answer_log_prob(items, log_probs)
        metrics |= {
            f"{name}/flips": (lost + gained) / len(items),
            f"{name}/flips_lost": lost / len(items),
            f"{name}/flips_gained": gained / len(items),
        }
        return Report(metrics, [own], self._samples(items, *chosen[self.normalize]))

    @staticmethod
    def _floor(items: list[dict[str, Any]], was: Hits) -> str:
        """Why the float model's answers say nothing; "" when they are better than guesses."""
        chance = float(np.mean([1 / len(item["options"]) for item in items]))
        low, _ = statistics.proportion_interval(int(was.sum()), len(items))
        return f"baseline accuracy {was.mean():.2f} is not above chance, {chance:.2f}" if low <= chance else ""

    @staticmethod
    def _choices(items: list[dict[str, Any]], log_probs: Values, per_character: bool) -> np.ndarray:
        """Index of the most likely option of every item; of equal ones the first."""
        choices, at = [], 0
        for item in items:
            lengths = [len(option) if per_character else 1 for option in item["options"]]
            choices.append(int(np.argmax(log_probs[at : at + len(lengths)] / lengths)))
            at += len(lengths)
        return np.array(choices)

    @staticmethod
    def _answer_log_prob(items: list[dict[str, Any]], log_probs: Values) -> float:
        """Mean log-probability of the right options: moves before an answer flips, and shows a model that broke."""
        starts = np.cumsum([0, *(len(item["options"]) for item in items[:-1])])
        return float(log_probs[starts + [item["answer"] for item in items]].mean())

    @staticmethod
    def _samples(items: list[dict[str, Any]], was: np.ndarray, now: np.ndarray) -> list[dict[str, str]]:
        """A few items, those with a changed answer first."""
        order = sorted(range(len(items)), key=lambda i: bool(was[i] == now[i]))
        return [
            {
                "input": items[i]["question"],
                "reference": items[i]["options"][items[i]["answer"]],
                "float": items[i]["options"][was[i]],
                "quantized": items[i]["options"][now[i]],
            }
            for i in order[:SAMPLES]
        ]

    def _signature(self, items: list[dict[str, Any]]) -> str:
        rule = "per-character" if self.normalize else "sum"
        source = sha256(self._file())[:12]
        return f"acc|items:{len(items)}|shots:0|score:option-text|norm:{rule}|prompt:{self.prompt!r}|data:{source}"

    def _file(self) -> str:
        return self.path or str(pinned(self.data))

    def _items(self) -> list[dict[str, Any]]:
        path = self._file()
        items = read_jsonl(path, {"question": str, "options": list, "answer": int}, _problem)
        return select(items, self.limit, path)

    def _tokens(self, model: Reader, item: dict[str, Any]) -> tuple[list[int], list[list[int]]]:
        """The question and its options."""
        prefix = model.encode(self.prompt.format(question=item["question"]))
        # the space belongs to the option: tokenizers join it with the word that follows
        return prefix, [model.encode(f" {option}") for option in item["options"]]


def _problem(item: dict[str, Any]) -> str | None:
    """What is wrong with the options or the answer of an item."""
    options, answer = item["options"], item["answer"]
    if len(options) < 2 or not all(isinstance(option, str) and option.strip() for option in options):
        return ": options are no texts; allowed: two texts or more"
    if not 0 <= answer < len(options):
        return f": answer={answer} is out of range; allowed: 0 to {len(options) - 1}"
    return None
