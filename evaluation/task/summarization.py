"""Summarization: how likely a one-sentence summary of what several papers found is, and ROUGE of the model's own."""

from dataclasses import dataclass, replace

from slimrun.evaluation import prompt, statistics
from slimrun.evaluation.base import LanguageModel, Outputs, Progress, Reference, finite, one_of, protocol_of, signed
from slimrun.evaluation.comparison import Report, paired
from slimrun.evaluation.generation import flaws
from slimrun.evaluation.metric import rouge
from slimrun.evaluation.references import LIKELIHOOD, Referenced
from slimrun.evaluation.source import items
from slimrun.evaluation.source.items import Items
from slimrun.evaluation.source.table import Row

PINNED = "consensus_summary"
JUDGES = (LIKELIHOOD, "rouge")


@dataclass(frozen=True)
class Summarization(Referenced):
    """A question, what several papers found, and a short summary; keys in conf/task/summarization.yaml."""

    limit: int | None = 60
    text: str = "{{ text }}"
    reference: str = "{{ summary }}"
    prompt: str = "{{ text }}\n\nSummarize the text above in one short sentence."
    max_new_tokens: int = 64
    margin_points: float = 2.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        one_of("judged_by", self.judged_by, JUDGES)
        for key in ("text", "reference", "prompt"):
            prompt.check(key, getattr(self, key))

    def check(self) -> None:
        """Read the items once."""
        self._pairs()

    def texts(self) -> list[str]:
        """The prompts."""
        return self.prompts()

    def prompts(self) -> list[str]:
        """What is to be summarized, and to do so."""
        return [asked for asked, _ in self._pairs()]

    def references(self) -> list[list[str]]:
        """The summaries that count as right."""
        return [several for _, several in self._pairs()]

    def protocol(self) -> str:
        """Settings, prompt and the hash of the items."""
        return protocol_of(self, self.items().sha256, without=["judged_by", "margin_pct", "margin_points"])

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """What `both` says."""
        return self.both(model, progress, disturbed=reference is not None)

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """The perplexity of the summaries, four ROUGE scores of the answers; one of them has the verdict."""
        references = self.of_answers(self.references())
        finite(name, float_outputs, quant_outputs, "reference_log_probs")
        was, now = float_outputs["texts"].tolist(), quant_outputs["texts"].tolist()
        before, after = rouge.rouge(was, references), rouge.rouge(now, references)
        how = f"judged:{self.judged_by}|prompt:{self.prompt!r}|{self.how(float_outputs)}"
        signature = signed(f"{rouge.rouge_signature()}|{how}", self.protocol())
        likelihood = self.likelihood_row(name, float_outputs, quant_outputs, signature)
        text = paired(
            name,
            "ROUGE-L",
            before["rougeL"],
            after["rougeL"],
            margin=self.margin("ROUGE-L"),
            floor=self._floor(was, references, before["rougeL"]),
            signature=signature,
            reach=(before["rougeL"].mean(), 100 - before["rougeL"].mean()),
        )
        if "again" in quant_outputs:
            again = rouge.rouge(quant_outputs["again"].tolist(), references[: len(quant_outputs["again"])])["rougeL"]
            moves = again - after["rougeL"][: len(again)]
            text = replace(text, noise=statistics.noise_of_mean(moves, len(references)))
        rows, metrics = self.rows(likelihood, text, "rougeL")
        for key in rouge.ROUGES:
            metrics[f"{name}/{key}_float"] = float(before[key].mean())
            metrics[f"{name}/{key}_quant"] = float(after[key].mean())
        rows += flaws(name, float_outputs, quant_outputs)
        return Report(metrics, rows, self.samples(self.prompts(), float_outputs, quant_outputs))

    def _floor(self, was: list[str], references: list[list[str]], own: statistics.Values) -> str:
        """Why the float model's answers say nothing; "" when they fit their own items better than the next ones."""
        if len(own) < statistics.LEAST_ITEMS:
            return ""
        if own.mean() <= self.margin_points:
            return f"baseline ROUGE-L {own.mean():.1f} is within the margin"
        chance = rouge.rouge(was, references[1:] + references[:1])["rougeL"]
        if statistics.paired_difference(chance, own).low > 0:
            return ""
        return f"baseline ROUGE-L {own.mean():.1f} is not above chance, {chance.mean():.1f}"

    def items(self) -> Items:
        """All there are."""
        return items.items(self.path, self.hub, PINNED)

    def _pairs(self) -> list[tuple[str, list[str]]]:
        """Prompts, and the summaries that count as right."""
        return self.items().selected(self.limit).made(self._pair)

    def _pair(self, row: Row) -> tuple[str, list[str]]:
        if self.path is None and self.hub is None:  # a pinned text is the question and one finding a line
            row = {**row, "text": "\n- ".join([row["question"], *row["claims"]])}
        body = prompt.text("text", self.text, row)
        return prompt.text("prompt", self.prompt, {"text": body}), prompt.texts("reference", self.reference, row)
