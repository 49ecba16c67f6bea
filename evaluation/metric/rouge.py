"""ROUGE over words, and over characters where a language writes no spaces."""

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from slimrun.evaluation.statistics import Values
from slimrun.evaluation.text import words

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Words:
    """ROUGE's tokenizer for every script; its own keeps a-z and 0-9 only, so equal Chinese texts score 0."""

    def tokenize(self, text: str) -> list[str]:
        """Lower-case words, every Chinese or Japanese character one."""
        return words(text)


def rouge(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Values]:
    """F1 x 100 of every item with the one of its references that fits best: key -> [n]."""
    from rouge_score.rouge_scorer import RougeScorer  # brings scipy, 2 s that a run without summaries need not wait

    scorer = RougeScorer(list(ROUGES), tokenizer=Words())
    rows = [scorer.score_multi(several, hypothesis) for hypothesis, several in zip(hypotheses, references, strict=True)]
    return {key: 100 * np.array([row[key].fmeasure for row in rows]) for key in ROUGES}


def rouge_signature() -> str:
    """What the ROUGE numbers depend on, in sacrebleu's manner."""
    return f"f1|case:lc|tok:words+cjk-chars|stem:no|lsum:newline|rouge_score:{version('rouge_score')}"
