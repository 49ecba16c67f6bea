"""BLEU and its kin: sacrebleu's scores with its signatures."""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from slimrun.evaluation.language import normalized
from slimrun.evaluation.statistics import Values
from slimrun.evaluation.text import CJK, HANGUL, SOUTH_EAST, share

# Those that need no download; 13a, intl and none go by spaces, which Chinese does not have, and which Korean has
# between words with all their endings.
BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "ja-mecab", "ko-mecab", "none")
BY_SPACES = ("13a", "intl", "none")
LIMIT = 0.2
SCRIPTS = {  # what they are called, their characters, the tokenizers that can split them
    "Chinese or Japanese": (CJK, "zh, char, ja-mecab"),
    "Korean": (HANGUL, "ko-mecab, char"),
    "Thai, Lao, Burmese, Khmer or Tibetan": (SOUTH_EAST, "char"),
}


def bleu_tokenizer(language: str) -> str:
    """sacrebleu's tokenizer for a target language; it never chooses one by itself from Python."""
    match normalized(language):
        case "zh" | "yue":
            return "zh"
        case "ja":
            return "ja-mecab" if find_spec("MeCab") else "char"
        case "ko":
            return "ko-mecab" if find_spec("mecab_ko") else "char"
        case "th" | "lo" | "my" | "km" | "bo":
            return "char"
        case _:
            return "13a"


def translation_metrics(language: str, tokenizer: str) -> dict[str, Any]:
    """The four metrics by their key, each with the settings the language needs."""
    asian = normalized(language) in ("zh", "yue", "ja")
    return {
        "bleu": BLEU(tokenize=tokenizer),
        "chrf": CHRF(),
        "chrfpp": CHRF(word_order=2),
        # without these two a Chinese sentence is one single word to TER
        "ter": TER(normalized=asian, asian_support=asian),
    }


def require_tokenizer(tokenizer: str, references: Sequence[str]) -> None:
    """Refuse to score by words between spaces what has no such words: identical halves would count for nothing."""
    if tokenizer not in BY_SPACES:
        return
    for language, (characters, able) in SCRIPTS.items():
        portion = share(characters, references)
        if portion > LIMIT:
            raise ValueError(
                f"tokenizer={tokenizer} cannot score text with {portion:.0%} {language} characters; allowed: {able} "
                "(or set the target language)"
            )


def corpus_score(metric: Any, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """Score and signature of a sacrebleu metric, one reference or several each."""
    require_tokenizer(getattr(metric, "tokenizer_signature", ""), [several[0] for several in references])
    score = float(metric.corpus_score(list(hypotheses), list(map(list, zip_longest(*references)))).score)
    return score, str(metric.get_signature())


def bleu_statistics(metric: Any, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Values:
    """What BLEU needs of every item, to be summed over items: [n, 10] (matches, n-grams, both lengths)."""
    rows = []
    for hypothesis, several in zip(hypotheses, references, strict=True):
        score = metric.corpus_score([hypothesis], [[reference] for reference in several])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, dtype=np.float64)


def bleu_of(statistics: Values) -> float:
    """BLEU of summed statistics [10], smoothed as in the corpus score."""
    counts = [round(count) for count in statistics.tolist()]
    return float(BLEU.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp").score)
