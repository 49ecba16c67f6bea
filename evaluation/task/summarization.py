"""Summarization: ROUGE of a one-sentence summary of what several papers found."""

from dataclasses import dataclass

from slimrun.evaluation import generation, prompt, statistics
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
from slimrun.evaluation.comparison import Report, paired
from slimrun.evaluation.metric import rouge
from slimrun.evaluation.source import items
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.source.table import Row

PINNED = "consensus_summary"


@dataclass(frozen=True)
class Summarization:
    """A question, what several papers found, and a short summary; keys in conf/task/summarization.yaml."""

    path: str | None = None
    hub: Hub | None = None
    limit: int | None = 20
    text: str = "{{ text }}"
    reference: str = "{{ summary }}"
    prompt: str = "{{ text }}\n\nSummarize the text above in one short sentence."
    chat: bool = True
    system: str | None = None
    too_long: str = "refuse"
    max_new_tokens: int = 64
    batch: int = 20
    margin_points: float = 2.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for key in ("limit", "max_new_tokens", "batch"):
            if getattr(self, key) is not None:
                at_least(key, getattr(self, key), 1)
        at_least("margin_points", self.margin_points, 0)
        one_of("too_long", self.too_long, generation.TOO_LONG)
        for key in ("text", "reference", "prompt"):
            prompt.check(key, getattr(self, key))

    def check(self) -> None:
        """Read the items once."""
        self._pairs()

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a prompt with its answer is longer than the model's context."""
        return self._encoded(model)[1]

    def texts(self) -> list[str]:
        """The prompts."""
        return [asked for asked, _ in self._pairs()]

    def protocol(self) -> str:
        """Settings, prompt and the hash of the items."""
        return protocol_of(self, self._items().sha256, without=["reference", "margin_points"])

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """texts: the summaries."""
        return generation.answers(model, self._encoded(model)[0], self.batch, self.max_new_tokens, progress)

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """Four ROUGE scores for both, ROUGE-L with a verdict where the float model's is above chance."""
        prompts, references = map(list, zip(*self._pairs()))
        was, now = float_outputs["texts"].tolist(), quant_outputs["texts"].tolist()
        before, after = rouge.rouge(was, references), rouge.rouge(now, references)
        own = paired(
            name,
            "ROUGE-L",
            before["rougeL"],
            after["rougeL"],
            margin=self.margin_points,
            floor=self._floor(was, references, before["rougeL"]),
            signature=self._signature(len(references)) + generation.dated(float_outputs),
        )
        metrics = own.metrics("rougeL")
        for key in rouge.ROUGES:
            metrics[f"{name}/{key}_float"] = float(before[key].mean())
            metrics[f"{name}/{key}_quant"] = float(after[key].mean())
        flawed = generation.flaws(name, float_outputs, quant_outputs)
        return Report(metrics, [own, *flawed], generation.examples(prompts, [each[0] for each in references], was, now))

    @staticmethod
    def _floor(was: list[str], references: list[list[str]], own: statistics.Values) -> str:
        """Why the float model's answers say nothing; "" when they fit their own items better than the next ones."""
        chance = rouge.rouge(was, references[1:] + references[:1])["rougeL"]
        above = statistics.paired_difference(chance, own)
        if above.doubt or above.low > 0:
            return ""
        return f"baseline ROUGE-L {own.mean():.1f} is not above chance, {chance.mean():.1f}"

    def _signature(self, items: int) -> str:
        return (
            f"{rouge.rouge_signature()}|items:{items}|greedy|max_new_tokens:{self.max_new_tokens}|"
            f"batch:{self.batch}|bs:{statistics.RESAMPLES}|seed:{statistics.SEED}|chat:{self.chat}|"
            f"too_long:{self.too_long}|"
            f"system:{self.system!r}|prompt:{self.prompt!r}|data:{self._items().sha256[:12]}"
        )

    def _encoded(self, model: Reader) -> tuple[list[list[int]], list[str]]:
        prompting = generation.Prompting(self.chat, self.system, self.too_long)
        return generation.encoded(model, self.texts(), self.max_new_tokens, prompting)

    def _items(self) -> Items:
        return items.items(self.path, self.hub, PINNED)

    def _pairs(self) -> list[tuple[str, list[str]]]:
        """Prompts, and the summaries that count as right."""
        return self._items().selected(self.limit).made(self._pair)

    def _pair(self, row: Row) -> tuple[str, list[str]]:
        if not self.path and not self.hub:  # a pinned text is the question and one finding a line
            row = {**row, "text": "\n- ".join([row["question"], *row["claims"]])}
        body = prompt.text("text", self.text, row)
        return prompt.text("prompt", self.prompt, {"text": body}), prompt.texts("reference", self.reference, row)
