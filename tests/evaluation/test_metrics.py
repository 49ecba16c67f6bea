"""Golden numbers: a measure that moves by accident is worse than none."""

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from slimrun.evaluation.language import name, normalized
from slimrun.evaluation.metric import bleu, fidelity
from slimrun.evaluation.metric.rouge import rouge
from slimrun.evaluation.source.pinned import pinned
from slimrun.evaluation.source.table import read_rows
from slimrun.evaluation.text import words

ZH_REFERENCE = "人人生而自由，在尊严和权利上一律平等。"
ZH_HYPOTHESIS = "人人生而自由，在尊严上一律平等。"


def head(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_perplexity_by_hand() -> None:
    # 1/2 and 1/8: geometric mean 1/4
    assert fidelity.perplexity(np.log([0.5, 0.125])) == pytest.approx(4)


def test_divergence_by_hand() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]], np.float32), np.array([[0.25, 0.5, 0.25]], np.float32)
    told = fidelity.divergence(np.array([1]), np.log(q), head, {"hidden": np.log(p)}, head, same_head=False)
    assert told["log_probs"][0] == pytest.approx(np.log(0.5))
    assert told["kl"][0] == pytest.approx(0.25 * np.log(2))  # 1/2 ln 2 + 1/4 ln 1/2
    assert not told["agree"][0]


@pytest.mark.parametrize("rows", [1, 3, fidelity.HEAD_ROWS, fidelity.HEAD_ROWS + 5])
def test_divergence_does_not_depend_on_the_blocks(rows: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, rows, 11)).astype(np.float32)
    targets = rng.integers(11, size=rows)
    told = fidelity.divergence(targets, a, head, {"hidden": b}, head, same_head=False)
    scores, kl, agree = told["log_probs"], told["kl"], told["agree"]
    p, q = head(b.astype(np.float64)), head(a.astype(np.float64))
    np.testing.assert_allclose(kl, (np.exp(p) * (p - q)).sum(axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores, q[np.arange(rows), targets], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scores, fidelity.token_log_probs(targets, a, head))
    np.testing.assert_array_equal(agree, p.argmax(axis=1) == q.argmax(axis=1))


@pytest.mark.parametrize(
    ("language", "key", "hypothesis", "reference", "score", "signature"),
    [
        ("fr", "bleu", "le chat dort sur le lit", "le chat dort sur le tapis", 75.98, "tok:13a|smooth:exp"),
        ("fr", "chrf", "le chat dort sur le lit", "le chat dort sur le tapis", 74.53, "nc:6|nw:0"),
        ("fr", "chrfpp", "le chat dort sur le lit", "le chat dort sur le tapis", 76.35, "nc:6|nw:2"),
        ("fr", "ter", "le chat dort sur le lit", "le chat dort sur le tapis", 16.67, "norm:no|punct:yes|asian:no"),
        ("zh", "bleu", ZH_HYPOTHESIS, ZH_REFERENCE, 73.43, "tok:zh"),
        ("zh", "ter", ZH_HYPOTHESIS, ZH_REFERENCE, 15.79, "norm:yes|punct:yes|asian:yes"),
    ],
)
def test_translation_golden(  # the values were computed apart, from the formulas of the papers
    language: str, key: str, hypothesis: str, reference: str, score: float, signature: str
) -> None:
    scorer = bleu.translation_metrics(language, bleu.bleu_tokenizer(language))[key]
    computed, said = bleu.corpus_score(scorer, [hypothesis], [[reference]])
    assert computed == pytest.approx(score, abs=0.01)
    assert signature in said


@pytest.mark.parametrize("tokenizer", bleu.BY_SPACES)
def test_chinese_is_never_scored_between_spaces(tokenizer: str) -> None:
    with pytest.raises(ValueError, match=rf"^tokenizer={tokenizer} cannot score .* zh, char"):
        bleu.corpus_score(BLEU(tokenize=tokenizer), [ZH_HYPOTHESIS], [[ZH_REFERENCE]])


@pytest.mark.parametrize(
    ("language", "text", "allowed"),
    [("ko", "모든 인간은 태어날 때부터 자유롭다", "ko-mecab, char"), ("th", "มนุษย์ทั้งหลายเกิดมามีอิสระ", "char")],
)
def test_korean_and_thai_are_guarded_too(language: str, text: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"^tokenizer=13a cannot score text with .*; allowed: {allowed}"):
        bleu.require_tokenizer("13a", [text])
    bleu.require_tokenizer(bleu.bleu_tokenizer(language), [text])
    assert {float(values[0]) for values in rouge([text], [[text]]).values()} == {100}


@pytest.mark.parametrize(
    ("code", "language", "text"),
    [
        ("lao_Laoo", "Lao", "ມະນຸດທຸກຄົນເກີດມາມີກຽດສັກສີ"),
        ("mya_Mymr", "Burmese", "လူတိုင်းသည်တူညီလွတ်လပ်သော"),
        ("bur", "Burmese", "လူတိုင်းသည်တူညီလွတ်လပ်သော"),
        ("khm_Khmr", "Khmer", "មនុស្សទាំងអស់កើតមកមានសេរីភាព"),
    ],
)
def test_a_language_without_spaces_goes_by_any_of_its_codes_too(code: str, language: str, text: str) -> None:
    assert (name(code), bleu.bleu_tokenizer(code)) == (language, "char")
    bleu.require_tokenizer(bleu.bleu_tokenizer(code), [text])
    with pytest.raises(ValueError, match=r"^tokenizer=13a cannot score text with"):
        bleu.require_tokenizer("13a", [text])


def test_tibetan_is_never_scored_between_spaces() -> None:
    text = "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ་སྐྱེས་ཙམ་ཉིད་ནས་ཆེ་མཐོངས་དང༌།"
    with pytest.raises(ValueError, match=r"^tokenizer=13a cannot score text with .*; allowed: char"):
        bleu.require_tokenizer("13a", [text])
    assert "་" not in words(text)
    bleu.require_tokenizer(bleu.bleu_tokenizer("bod_Tibt"), [text])
    assert (normalized("bod_Tibt"), name("bo")) == ("bo", "Tibetan")


def test_cantonese_is_another_language_than_chinese_and_split_as_it_is() -> None:
    assert (normalized("yue_Hant"), name("yue_Hant"), bleu.bleu_tokenizer("yue_Hant")) == ("yue", "Cantonese", "zh")
    assert "asian:yes" in bleu.corpus_score(bleu.translation_metrics("yue", "zh")["ter"], ["中文"], [["中文"]])[1]


@pytest.mark.parametrize("code", ["zh", "zh-CN", "zh_Hant", "ZH", "zho_Hans", "cmn"])
def test_languages_by_any_of_their_codes(code: str) -> None:
    assert (normalized(code), name(code), bleu.bleu_tokenizer(code)) == ("zh", "Chinese", "zh")
    assert "asian:yes" in bleu.corpus_score(bleu.translation_metrics(code, "zh")["ter"], ["中文"], [["中文"]])[1]
    assert (normalized("eng_Latn"), name("xx"), normalized("pt-BR")) == ("en", "xx", "pt")


def test_some_chinese_words_in_french_are_no_error() -> None:
    bleu.require_tokenizer("13a", ["Le mot 自由 veut dire liberté, rien de plus."])


@pytest.mark.parametrize("kept", [3, 30])  # three words of each leave no 4-gram: the smoothing must be the same
def test_bleu_from_statistics_is_the_corpus_score(kept: int) -> None:
    references = [row["fr"] for _, row in read_rows(pinned("udhr"))]
    hypotheses = [" ".join(["x y", *reference.split()[:kept], "z"]) for reference in references]
    metric = BLEU()
    statistics = bleu.bleu_statistics(metric, hypotheses, [[reference] for reference in references])
    assert bleu.bleu_of(statistics.sum(axis=0)) == pytest.approx(
        metric.corpus_score(hypotheses, [references]).score, abs=1e-9
    )


def test_rouge_of_identical_chinese_is_100() -> None:
    assert {float(values[0]) for values in rouge([ZH_REFERENCE], [[ZH_REFERENCE]]).values()} == {100}


def test_rouge_of_mixed_text_sees_the_chinese() -> None:
    # rouge_score's own tokenizer keeps "python" alone and says 100
    scores = rouge(["今天用Python写代码"], [["明天用Python吃饭"]])
    assert scores["rouge1"][0] == pytest.approx(100 * 2 * 3 / (7 + 6))
    assert scores["rougeL"][0] == pytest.approx(100 * 2 * 3 / (7 + 6))


def test_rouge_golden_english() -> None:
    scores = rouge(["the cat sat on the mat"], [["the cat lay on the mat"]])
    assert scores["rouge1"][0] == pytest.approx(100 * 5 / 6)
    assert scores["rouge2"][0] == pytest.approx(100 * 3 / 5)


def test_accents_stay_in_words() -> None:
    assert words("L'été, Здравствуй! 我love你 한국어") == ["l", "été", "здравствуй", "我", "love", "你", "한국어"]


def test_the_reference_that_fits_best_counts() -> None:
    several = [["a dog ran", "the cat sat on the mat"], ["one two three four five"]]
    hypotheses = ["the cat sat on the mat", "one two three four five"]
    assert rouge(hypotheses, several)["rougeL"].tolist() == [100, 100]
    metric = BLEU()
    score, said = bleu.corpus_score(metric, hypotheses, several)
    assert (score, "nrefs:var" in said) == (pytest.approx(100), True)
    rows = bleu.bleu_statistics(metric, hypotheses, several)
    assert bleu.bleu_of(rows.sum(axis=0)) == pytest.approx(100)
