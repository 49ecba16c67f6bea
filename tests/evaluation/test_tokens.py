"""What stands before a text in tokens, and where a prompt ends and its option begins."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, PreTokenizer
from tokenizers.trainers import BpeTrainer

from slimrun.evaluation import tokens
from slimrun.evaluation.task.exact_match import ExactMatch
from slimrun.evaluation.task.last_word import LastWord
from slimrun.evaluation.task.multiple_choice import MultipleChoice
from slimrun.evaluation.task.perplexity import Perplexity
from slimrun.evaluation.task.summarization import Summarization
from tests.evaluation import shapes
from tests.evaluation.fake import FakeModel, silent

SPACE = 95  # of SentencePiece: _ marks a word's beginning, the first one's too


class Marked(FakeModel):
    """A tokenizer that puts the mark of a beginning before each text, as SentencePiece does, and a token before all."""

    def __init__(self) -> None:
        super().__init__()
        self.opening = [1]

    def encode(self, text: str) -> list[int]:
        return list(f"_{text}".replace(" ", "_").encode())


class MarkedOnce(FakeModel):
    """One that takes a space at the beginning for the mark, as Metaspace of the library tokenizers does."""

    def encode(self, text: str) -> list[int]:
        return list(f"_{text.removeprefix(' ')}".replace(" ", "_").encode())


def test_an_option_goes_on_after_its_prompt() -> None:
    assert tokens.continued(FakeModel(), "Answer:", " B") == [32, 66]
    assert tokens.continued(Marked(), "Answer:", " B") == [SPACE, 66], "encoded apart it would begin with two marks"
    assert tokens.continued(Marked(), "答案：", "B") == [66], "and here with one that is not in the text"
    assert tokens.continued(MarkedOnce(), "Answer:", " B") == [SPACE, 66]
    assert tokens.continued(MarkedOnce(), "答案：", "B") == [66]


@pytest.mark.parametrize(
    "split",
    [
        *(Metaspace(prepend_scheme=scheme) for scheme in ("always", "first", "never")),
        *(ByteLevel(add_prefix_space=spaced) for spaced in (True, False)),
    ],
)
def test_so_it_does_with_the_tokenizers_there_are(split: PreTokenizer) -> None:
    read, model = Tokenizer(BPE()), FakeModel()
    read.pre_tokenizer = split
    read.train_from_iterator(["Answer: A B", "案 ： A a 1 b )"] * 9, BpeTrainer(show_progress=False))
    model.encode = lambda text: read.encode(text).ids  # type: ignore[method-assign]
    [spaced] = tokens.continued(model, "Answer:", " B")
    assert read.id_to_token(spaced) in ("▁B", "ĠB")
    assert [read.id_to_token(token) for token in tokens.continued(model, "案：", "A")] == ["A"]


def test_what_the_tokenizer_puts_before_a_text_is_there_and_in_the_signature() -> None:
    plain, marked = FakeModel(), FakeModel()
    marked.opening = [1, 2]
    own = Perplexity(windows=3, window=16)
    outputs = {name: own.evaluate(model, None, silent) for name, model in (("plain", plain), ("marked", marked))}
    assert marked.calls[0] == (1, 18)
    assert outputs["marked"]["hidden"].shape == outputs["plain"]["hidden"].shape
    signatures = {name: str(own.compare("p", side, side).metrics["p/signature"]) for name, side in outputs.items()}
    assert "|bos:no|" in signatures["plain"]
    assert signatures["marked"] == signatures["plain"].replace("|bos:no|", "|front:1,2|")
    none = Perplexity(windows=3, window=16, prefix="").evaluate(marked, None, silent)
    np.testing.assert_array_equal(none["log_probs"], outputs["plain"]["log_probs"])
    said = Perplexity(windows=3, window=16, prefix="\1\2").evaluate(plain, None, silent)
    np.testing.assert_array_equal(said["log_probs"], outputs["marked"]["log_probs"])
    assert Perplexity(prefix="x").protocol() != Perplexity().protocol()


def test_it_takes_room_of_the_context() -> None:
    model = FakeModel(context=64)
    model.opening = [1]
    Perplexity(window=63).fit(model)
    with pytest.raises(ValueError, match=r"window=64 is out of range; allowed: 2 to 63, the model's context less"):
        Perplexity(window=64).fit(model)


def test_options_and_words_come_after_it_too(tmp_path: Path) -> None:
    model = Marked()
    [question] = MultipleChoice(limit=1)._questions()
    prefixes, options = question.tokens(model, tokens.front(model, None), chat=False)
    assert prefixes[0][:2] == [1, SPACE]
    assert [option[0] for option in options] == [SPACE] * 4
    chat, _ = question.tokens(model, [], chat=True)
    assert chat[0] == model.encode_prompt(question.prompts[0])
    word = LastWord(path=str(shapes.written(tmp_path, "lambada")), limit=1)
    [(before, after)], _ = word._encoded(model)
    assert (before[0], bytes(after)) == (1, b"_mouse")
    outputs = MultipleChoice(limit=2).evaluate(model, None, silent)
    assert "|front:1|" in str(MultipleChoice(limit=2).compare("m", outputs, outputs).metrics["m/signature"])
    outputs = MultipleChoice(limit=2, chat=True).evaluate(model, None, silent)
    assert "|chat|" in str(MultipleChoice(limit=2, chat=True).compare("m", outputs, outputs).metrics["m/signature"])


def test_a_prompt_is_a_turn_or_plain_text_with_a_system_prompt_or_without(tmp_path: Path) -> None:
    model = FakeModel()
    path = str(shapes.written(tmp_path, "boolq", [{"text": "a", "summary": "b", "question": "a", "answer": "b"}]))
    plain = {"path": path, "limit": 1, "prompt": "{{ text }}"}
    assert bytes(Summarization(**plain).encoded(model)[0][0]) == b"question: a\nanswer: "
    assert bytes(Summarization(**plain, system="Brief. ").encoded(model)[0][0]) == b"Brief. question: a\nanswer: "
    assert bytes(Summarization(**plain, chat=False).encoded(model)[0][0]) == b"a"
    assert bytes(ExactMatch(**plain, chat=False, system="S").encoded(model)[0][0]) == b"S\n\na"


def test_a_plain_prompt_has_a_prefix_and_says_so(tmp_path: Path) -> None:
    path = str(shapes.written(tmp_path, "boolq", [{"text": "a", "summary": "b", "question": "a", "answer": "b"}]))
    plain = {"path": path, "limit": 1, "prompt": "{{ text }}", "chat": False}
    model = FakeModel()
    model.opening = [1]
    for prefix, before, told in (
        (None, b"\1", "|front:1|"),
        ("", b"", "|bos:no|"),
        ("<s>", b"<s>", "|front:60,115,62|"),
    ):
        for own in (Summarization(**plain, prefix=prefix), ExactMatch(**plain, prefix=prefix)):
            assert bytes(own.encoded(model)[0][0]) == before + b"a"
            outputs = own.evaluate(model, None, silent)
            assert told in str(own.compare("t", outputs, outputs).metrics["t/signature"])
    with pytest.raises(ValueError, match=r"^prefix=<s> is for plain text; allowed: null, or chat=false"):
        Summarization(prefix="<s>")


def test_a_reference_goes_on_after_a_plain_prompt(tmp_path: Path) -> None:
    path = str(shapes.written(tmp_path, "boolq", [{"text": "a", "summary": "b"}]))
    own = Summarization(path=path, limit=1, prompt="{{ text }}：", chat=False)
    assert own._expected(Marked()) == [[98]]
    assert Summarization(path=path, limit=1)._expected(Marked()) == [[SPACE, 98]], "the template may end in anything"


def test_prompts_beyond_the_context_are_refused_or_cut_and_counted(tmp_path: Path) -> None:
    rows = [{"text": "a" * length, "summary": "b"} for length in (5, 40, 50)]
    path, model = str(shapes.written(tmp_path, "boolq", rows)), FakeModel(context=40)
    plain = {"path": path, "limit": 3, "prompt": "{{ text }}", "chat": False, "max_new_tokens": 8, "batch": 2}
    with pytest.raises(ValueError, match=r"^prompt: 2 of 3 are too long, the longest has 50 tokens, .* too_long=cut"):
        Summarization(**plain).fit(model)
    own = Summarization(**plain, too_long="cut")
    assert own.fit(model) == ["too_long=cut: 2 of 3 prompts lose their beginning, to 32 tokens"]
    assert [len(ids) for ids in own.encoded(model)[0]] == [5, 32, 32]
    assert own.evaluate(model, None, silent)["texts"].shape == (3,)
    turn = Summarization(**plain | {"chat": True, "prompt": "A: {{ text }}", "system": "Be brief. "}, too_long="cut")
    with pytest.raises(ValueError, match=r"^prompt: 3 of 3 are too long, .* 82 tokens, .* or a shorter system"):
        turn.fit(FakeModel(context=36))
    cut = turn.encoded(FakeModel(context=64))[0]
    assert bytes(cut[0]) == b"Be brief. question: A: aaaaa\nanswer: "
    assert bytes(cut[2]) == b"Be brief. question: " + b"a" * 27 + b"\nanswer: "
    with pytest.raises(ValueError, match=r"^too_long=shorten is unknown; allowed: refuse, cut"):
        Summarization(too_long="shorten")


def test_questions_beyond_the_context_are_refused_or_cut_and_counted(tmp_path: Path) -> None:
    rows = [{"q": "a" * length, "options": ["b", "cccc"], "answer": 0} for length in (5, 40, 50)]
    path, model = str(shapes.written(tmp_path, "boolq", rows)), FakeModel(context=40)
    plain = {"path": path, "limit": 3, "prompt": "{{ q }}", "prefix": "<s>"}
    with pytest.raises(ValueError, match=r"^prompt: 2 of 3 are too long, the longest has 58 tokens, .* too_long=cut"):
        MultipleChoice(**plain).fit(model)
    own = MultipleChoice(**plain, too_long="cut")
    assert own.fit(model) == ["too_long=cut: 2 of 3 texts lose their beginning, to 40 tokens"]
    [[(prefix, options)]] = own._encoded(model)[0][2:]
    assert bytes(prefix) == b"<s>" + b"a" * 32
    assert list(map(len, options)) == [2, 5]
    outputs = own.evaluate(model, None, silent)
    assert "too_long:cut" in str(own.compare("t", outputs, outputs).metrics["t/signature"])
    assert "too_long" not in MultipleChoice(**plain).protocol(), "what is refused changes no score"
    turn = MultipleChoice(path=path, limit=3, prompt="{{ q }}", chat=True, too_long="cut")
    [[(prefix, _)]] = turn._encoded(FakeModel(context=50))[0][2:]
    assert bytes(prefix) == b"question: " + b"a" * 26 + b"\nanswer: "
    with pytest.raises(ValueError, match=r"the model's context 7; leave the task out, give shorter texts with path=FI"):
        own.fit(FakeModel(context=7))
    with pytest.raises(ValueError, match=r"^too_long=no is unknown; allowed: refuse, cut"):
        MultipleChoice(too_long="no")


def test_texts_before_a_last_word_are_refused_or_cut_and_counted(tmp_path: Path) -> None:
    path = str(shapes.written(tmp_path, "boolq", [{"text": "a" * length + " end"} for length in (5, 50)]))
    model = FakeModel(context=20)
    with pytest.raises(ValueError, match=r"^text: 1 of 2 are too long, the longest has 54 tokens, .* too_long=cut"):
        LastWord(path=path).fit(model)
    own = LastWord(path=path, too_long="cut")
    assert own.fit(model) == ["too_long=cut: 1 of 2 texts lose their beginning, to 20 tokens"]
    assert [(len(prefix), bytes(word)) for prefix, word in own._encoded(model)[0]] == [(5, b" end"), (16, b" end")]
    outputs = own.evaluate(model, None, silent)
    assert "too_long:cut" in str(own.compare("t", outputs, outputs).metrics["t/signature"])
    assert "too_long" not in LastWord(path=path).protocol()
