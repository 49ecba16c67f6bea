"""A tokenizer is looked at before any weight: every kind of trouble is one line; and prompts are the same every day."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from slimrun.ops.errors import Unavailable
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.model.text import PROMPT_TIME, TextModel
from slimrun.ops.model.tokenizer import byte_tokenizer
from tests.conftest import ARCHITECTURE, described
from tests.framework import folders

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Config and tokenizer of a model: all that is looked at."""
    path = tmp_path / "model"
    byte_tokenizer().save_pretrained(path)
    (path / "config.json").write_text(json.dumps(ARCHITECTURE))
    return path


def read(folder: Path, trusted: bool = False) -> TextModel:
    model = Pretrained("mine", str(folder), trust_remote_code=trusted).open(folder / ".cache").reader()
    assert model is not None
    return model


def remove(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()


def only_config(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def pointer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(POINTER)


def damaged(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": ')


def too_many(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(folder)


def own_code(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["mine.MyTokenizer", None]}, "tokenizer_class": "MyTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text("import no_such_package\nclass MyTokenizer: pass\n")


@pytest.mark.parametrize(
    ("break_it", "trusted", "line"),
    [
        (remove, False, r"model has no tokenizer \(tokenizer\.json, .*put the model's beside its weights"),
        (only_config, False, r"model has no tokenizer"),
        (pointer, False, r"tokenizer\.json is a Git LFS pointer, .*git lfs pull"),
        (damaged, False, r"model: its tokenizer cannot be read \("),
        (too_many, False, r"has 260 tokens, the model embeddings for 259: none for <\|im_start\|> \(259\)"),
        (own_code, False, r"add model\.trust_remote_code=true if you trust it"),
        (own_code, True, r"cannot be read \(.*no_such_package"),
    ],
)
def test_what_the_model_cannot_read_with_is_one_line(
    folder: Path, break_it: Callable[[Path], None], trusted: bool, line: str
) -> None:
    assert read(folder).encode("text")
    break_it(folder)
    with pytest.raises(Unavailable, match=line) as refused:
        read(folder, trusted)
    assert "\n" not in str(refused.value)


def test_a_padding_token_without_a_row_is_no_trouble(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    assert read(folder).encode("text")


@pytest.mark.parametrize("tokenizer_class", [None, "LLaMATokenizer", "LlamaTokenizer"])
def test_sentencepiece_alone_is_enough(tmp_path: Path, tokenizer_class: str | None) -> None:
    llama = folders.llama(tmp_path / "llama")
    if tokenizer_class is not None:  # as the converters of early 2023 wrote it, and later ones
        empty = {"bos_token": "", "eos_token": "", "unk_token": ""} if tokenizer_class == "LLaMATokenizer" else {}
        settings = {"tokenizer_class": tokenizer_class, "add_bos_token": True, **empty}
        (llama / "tokenizer_config.json").write_text(json.dumps(settings))
    pieces = SentencePieceProcessor(model_file=str(llama / "tokenizer.model"))
    model = read(llama)
    for text in ("Everyone has the right to freedom, 2024", "人人生而自由\n\n🙂"):
        assert model.encode(text) == pieces.encode(text)
        assert model.encode_prompt(text) == [1, *pieces.encode(text)]  # <s>
        assert model.decode(model.encode_prompt(text)) == text


class Tomorrow(datetime):
    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime(2031, 5, 6, 7, 8, 9)


@pytest.mark.parametrize(
    ("template", "date"),
    [
        ("{{ strftime_now('%d %B %Y %H:%M:%S.%f') }} {{ messages[0]['content'] }}", "26 July 2024 00:00:00.000000 hi"),
        (
            "{% if not date is defined %}{% if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}"
            "{% endif %}{% endif %}{{ date }}{{ messages[0]['content'] }}",
            "26 Jul 2024hi",
        ),
        ("{{ messages[0]['content'] }}", ""),
        ("{% if tools %}{{ strftime_now('%Y') }}{% endif %}{{ messages[0]['content'] }}", ""),
    ],
    ids=["clock", "llama", "none", "not asked"],
)
def test_a_prompt_is_the_same_at_any_time(
    tiny_model: TorchModel, monkeypatch: pytest.MonkeyPatch, template: str, date: str
) -> None:
    tiny_model.tokenizer.chat_template = template
    before = tiny_model.encode_prompt("hi")
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert tiny_model.encode_prompt("hi") == before
    assert tiny_model.decode(before) == (date or "hi")
    assert tiny_model.prompt_date == (PROMPT_TIME.date().isoformat() if date else "")


def test_a_template_that_refuses_a_plain_turn_is_one_line(tiny_model: TorchModel) -> None:
    tiny_model.tokenizer.chat_template = "{{ raise_exception('A system message\nis required') }}"
    with pytest.raises(Unavailable, match=r"takes no plain user turn \(A system message\); .*leave out the tasks"):
        tiny_model.encode_prompt("hi")


def test_the_key_of_a_reader_follows_its_files(folder: Path, tmp_path: Path) -> None:
    model, keys = Pretrained("mine", str(folder)), []
    for change in (lambda _: None, too_many, remove):
        change(folder)
        keys.append(model.open(tmp_path / "cache").key())
    assert len({*keys, described().open(tmp_path).key()}) == 4
    shutil.rmtree(folder)
    with pytest.raises(Unavailable, match="no such folder"):
        model.open(tmp_path / "cache").key()


@pytest.mark.parametrize(("make", "opening"), [(folders.chatglm2, [1001, 1003]), (folders.llama, [1])])
def test_what_a_tokenizer_puts_before_a_text(make: Callable[[Path], Path], opening: list[int], tmp_path: Path) -> None:
    reader = Pretrained("mine", str(make(tmp_path / "model"))).reader()
    assert reader is not None
    assert reader.opening == opening, "[gMASK] sop, and <s>"
    assert reader.encode_prompt("a") == opening + reader.encode("a")


def test_a_system_prompt_is_a_turn_of_the_chat_template(folder: Path) -> None:
    assert read(folder).opening == []
    assert read(folder).encode_prompt("hi", "be kind") == read(folder).encode("be kind\n\nhi")
    template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    assert read(folder).encode_prompt("hi", "be kind") == read(folder).encode("<system>be kind<user>hi")
    assert read(folder).encode_prompt("hi") == read(folder).encode("<user>hi")
