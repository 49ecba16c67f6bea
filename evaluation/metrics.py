"""The measures: perplexity, divergence, BLEU and its kin, ROUGE. Each says with a signature how it was computed."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from slimrun.evaluation.base import FloatArray, IntArray
from slimrun.evaluation.statistics import Values
from slimrun.evaluation.text import cjk_share, words

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# Those that need no download; 13a and intl split at spaces and punctuation, which Chinese does not have.
BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "ja-mecab", "ko-mecab", "none")
WITHOUT_CJK = ("13a", "intl", "none")
CJK_LIMIT = 0.2
HEAD_ROWS = 128  # rows of one call of the output head: enough for a fast product, 25 MB at 49152 tokens
CACHE_ROWS = 4  # rows whose log-probabilities stay in the processor's cache while several passes read them

Head = Callable[[FloatArray], FloatArray]


def perplexity(log_probs: npt.NDArray[Any]) -> float:
    """exp of the mean negative log-likelihood, per token, over all axes."""
    return float(np.exp(-np.mean(log_probs, dtype=np.float64)))


def token_log_probs(targets: IntArray, hidden: FloatArray, head: Head) -> FloatArray:
    """Log-probability of every target: [N], [N, H] -> [N]."""
    parts = []
    for start in range(0, len(targets), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        parts.append(np.take_along_axis(head(hidden[rows]), targets[rows, None], axis=1)[:, 0])
    return np.concatenate(parts)


def divergence(
    targets: IntArray, hidden: FloatArray, head: Head, float_hidden: FloatArray, float_head: Head
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Compare two models token by token, exactly over the vocabulary, one block of rows at a time.

    targets [N], hidden states [N, H] and output heads of the quantized and of the float model ->
    log-probability of the targets under the quantized model [N], KL(float || quantized) in nats [N], whether both
    models have the same most likely token [N]. Full log-probabilities of 16k tokens would be 3 GB a model.
    """
    count = len(targets)
    scores, kl = np.empty(count, np.float32), np.empty(count, np.float32)
    agree = np.empty(count, np.bool_)
    for start in range(0, count, HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        quant, reference = head(hidden[rows]), float_head(float_hidden[rows])
        scores[rows] = np.take_along_axis(quant, targets[rows, None], axis=1)[:, 0]
        for at in range(0, len(quant), CACHE_ROWS):
            q, p = quant[at : at + CACHE_ROWS], reference[at : at + CACHE_ROWS]
            out = slice(start + at, start + at + len(q))
            agree[out] = q.argmax(axis=1) == p.argmax(axis=1)
            # Gibbs' inequality holds for real numbers; float32 may miss it in the last place
            kl[out] = np.maximum(np.einsum("nv,nv->n", np.exp(p), p - q), 0)
    return scores, kl, agree


def bleu_tokenizer(language: str) -> str:
    """sacrebleu's tokenizer for a target language; it never chooses one by itself from Python."""
    match language:
        case "zh":
            return "zh"
        case "ja":
            return "ja-mecab" if find_spec("MeCab") else "char"
        case _:
            return "13a"


def translation_metrics(language: str, tokenizer: str) -> dict[str, Any]:
    """The four metrics by their key, each with the settings the language needs."""
    asian = language in ("zh", "ja")
    return {
        "bleu": BLEU(tokenize=tokenizer),
        "chrf": CHRF(),
        "chrfpp": CHRF(word_order=2),
        # without these two a Chinese sentence is one single word to TER
        "ter": TER(normalized=asian, asian_support=asian),
    }


def require_cjk_tokenizer(tokenizer: str, references: Sequence[str]) -> None:
    """Refuse to score Chinese or Japanese by words between spaces: identical halves would count for nothing."""
    share = cjk_share(references)
    if tokenizer in WITHOUT_CJK and share > CJK_LIMIT:
        raise ValueError(
            f"tokenizer={tokenizer} cannot score text with {share:.0%} Chinese or Japanese characters; "
            "allowed: zh, char, ja-mecab (or set the target language)"
        )


def corpus_score(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Score and signature of a sacrebleu metric, one reference each."""
    require_cjk_tokenizer(getattr(metric, "tokenizer_signature", ""), references)
    score = float(metric.corpus_score(list(hypotheses), [list(references)]).score)
    return score, str(metric.get_signature())


def bleu_statistics(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> Values:
    """What BLEU needs of every item, to be summed over items: [n, 10] (matches, n-grams, both lengths)."""
    rows = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        score = metric.corpus_score([hypothesis], [[reference]])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, dtype=np.float64)


def bleu_of(statistics: Values) -> float:
    """BLEU of summed statistics [10], smoothed as in the corpus score."""
    counts = [round(count) for count in statistics.tolist()]
    return float(BLEU.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp").score)


class Words:
    """ROUGE's tokenizer for every script; its own keeps a-z and 0-9 only, so equal Chinese texts score 0."""

    def tokenize(self, text: str) -> list[str]:
        """Lower-case words, every Chinese or Japanese character one."""
        return words(text)


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Values]:
    """F1 x 100 of every item: key -> [n]."""
    from rouge_score.rouge_scorer import RougeScorer  # brings scipy, 2 s that a run without summaries need not wait

    scorer = RougeScorer(list(ROUGES), tokenizer=Words())
    rows = [scorer.score(reference, hypothesis) for hypothesis, reference in zip(hypotheses, references, strict=True)]
    return {key: 100 * np.array([row[key].fmeasure for row in rows]) for key in ROUGES}


def rouge_signature() -> str:
    """What the ROUGE numbers depend on, in sacrebleu's manner."""
    return f"f1|case:lc|tok:words+cjk-chars|stem:no|lsum:newline|rouge_score:{version('rouge_score')}"
