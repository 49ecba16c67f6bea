"""Summarization: ROUGE of a one-sentence summary of what several papers found."""

from dataclasses import dataclass

from slimrun.evaluation import generation, statistics
from slimrun.evaluation.base import (
    LanguageModel,
    Outputs,
    Progress,
    Reader,
    Reference,
    at_least,
    protocol_of,
)
from slimrun.evaluation.comparison import Report, paired
from slimrun.evaluation.metric import rouge
from slimrun.evaluation.prompt import fills
from slimrun.evaluation.source.file import read_jsonl, select, sha256
from slimrun.evaluation.source.pinned import pinned

PINNED = "consensus_summary"


@dataclass(frozen=True)
class Summarization:
    """A question, what several papers found, and a short summary; keys in conf/task/summarization.yaml."""

    path: str | None = None
    limit: int = 20
    prompt: str = "{text}\n\nSummarize the text above in one short sentence."
    max_new_tokens: int = 64
    batch: int = 20
    margin_points: float = 2.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for key in ("limit", "max_new_tokens", "batch"):
            at_least(key, getattr(self, key), 1)
        at_least("margin_points", self.margin_points, 0)
        fills("prompt", self.prompt, ["text"])

    def check(self) -> None:
        """Read the items once."""
        self._items()

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a prompt with its answer is longer than the model's context."""
        generation.encoded(model, self.texts(), self.max_new_tokens)
        return []

    def texts(self) -> list[str]:
        """The prompts."""
        return [prompt for prompt, _ in self._items()]

    def protocol(self) -> str:
        """Settings, prompt and the hash of the items."""
        return protocol_of(self, sha256(self._file()), without=["margin_points"])

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """texts: the summaries."""
        prompts = [prompt for prompt, _ in self._items()]
        return generation.answers(model, prompts, self.batch, self.max_new_tokens, progress)

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """Four ROUGE scores for both, ROUGE-L with a verdict where the float model's is above chance."""
        prompts, references = map(list, zip(*self._items()))
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
        return Report(metrics, [own], generation.examples(prompts, references, was, now))

    @staticmethod
    def _floor(was: list[str], references: list[str], own: statistics.Values) -> str:
        """Why the float model's answers say nothing; "" when they fit their own items better than the next ones."""
        chance = rouge.rouge(was, references[1:] + references[:1])["rougeL"]
        above = statistics.paired_difference(chance, own)
        if above.doubt or above.low > 0:
            return ""
        return f"baseline ROUGE-L {own.mean():.1f} is not above chance, {chance.mean():.1f}"

    def _signature(self, items: int) -> str:
        source = sha256(self._file())[:12]
        return (
            f"{rouge.rouge_signature()}|items:{items}|greedy|max_new_tokens:{self.max_new_tokens}|"
            f"batch:{self.batch}|bs:{statistics.RESAMPLES}|seed:{statistics.SEED}|prompt:{self.prompt!r}|data:{source}"
        )

    def _file(self) -> str:
        return self.path or str(pinned(PINNED))

    def _items(self) -> list[tuple[str, str]]:
        """Pairs of prompt and summary; a pinned text is the question and one finding a line."""
        path = self._file()
        own: dict[str, type] = {"text": str, "summary": str}
        fields = own if self.path else {"question": str, "claims": list, "summary": str}
        rows = select(read_jsonl(path, fields), self.limit, path)
        texts = [row["text"] if self.path else "\n- ".join([row["question"], *row["claims"]]) for row in rows]
        return [(self.prompt.format(text=body), row["summary"]) for body, row in zip(texts, rows)]
