"""Tokenizers of transformers: loaded, and refused in one line when the model could not read text with them."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from slimrun.ops.errors import Unavailable, first_line
from slimrun.ops.model.auto import AutoTokenizer
from slimrun.ops.model.fingerprint import WEIGHTS, loaded_files, read_object
from slimrun.ops.model.outline import code_hint
from slimrun.ops.model.text import TextModel

BYTE_SPECIALS = ("<pad>", "<s>", "</s>")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json with merges.txt", "vocab.txt", "*.tiktoken")
POINTER = b"version https://git-lfs"  # begins the file that Git LFS puts in the place of the real one
POINTER_BYTES = 1024  # no pointer is larger
LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}


def reader(tokenizer: Any, config: Any, source: str) -> TextModel:
    """How a model reads text; Unavailable says what of the tokenizer of `source` does not fit its config."""
    text_model = TextModel(tokenizer, config)
    _check_vocabulary(text_model, source)
    return text_model


def load_tokenizer(path: Path | str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder or hub id; Unavailable when there is none or it cannot be read."""
    if isinstance(path, Path):
        _check_pointers(path, trust_remote_code)
    try:
        if isinstance(path, Path) and _is_llamas(path):
            return LlamaTokenizer.from_pretrained(path, **LLAMA)
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # readers of many formats and custom code, each with errors of its own
        if isinstance(path, Path) and not _has_vocabulary(path):
            raise Unavailable(_none_there(str(path))) from error
        raise Unavailable(f"{path}: its tokenizer cannot be read ({first_line(error)}){_hint(error)}") from error


def byte_tokenizer() -> Any:
    """A tokenizer of the 256 bytes and three special tokens: any text, no vocabulary file."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*BYTE_SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = BYTE_SPECIALS
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)


def _check_vocabulary(text_model: TextModel, source: str) -> None:
    """Unavailable when the tokenizer knows no text, or tokens for which the model has no embedding."""
    tokenizer, rows = text_model.tokenizer, text_model.vocabulary
    known = {**tokenizer.get_vocab(), **tokenizer.get_added_vocab()}
    if not known.keys() - set(tokenizer.all_special_tokens):
        raise Unavailable(_none_there(source))
    # many checkpoints name a padding token that was never given a row; nothing here pads with it
    beyond = {token for token, number in known.items() if rows is not None and number >= rows}
    beyond -= {tokenizer.pad_token}
    if beyond:
        first = sorted(beyond, key=lambda token: known[token])[:3]
        raise Unavailable(
            f"{source}: the tokenizer has {max(known.values()) + 1} tokens, the model embeddings for {rows}: none for "
            f"{', '.join(f'{token} ({known[token]})' for token in first)}; give the tokenizer of these weights, or "
            "resize the embeddings (resize_token_embeddings) and save both"
        )


def _check_pointers(folder: Path, code: bool) -> None:
    for file in loaded_files(folder, code):
        if file.stat().st_size <= POINTER_BYTES and file.read_bytes().startswith(POINTER):
            raise Unavailable(f"{file} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull")


def _is_llamas(folder: Path) -> bool:
    """Whether a LLaMA's tokenizer.model is all that says what its tokenizer is.

    transformers 5 would read it without `<s>` before each text. Conversions of early 2023 name a class that nobody has,
    with empty special tokens.
    """
    if (folder / "tokenizer.json").exists() or not (folder / "tokenizer.model").exists():
        return False
    named = read_object(folder / "tokenizer_config.json").get("tokenizer_class")
    return named in (None, "LLaMATokenizer") and read_object(folder / "config.json").get("model_type") == "llama"


def _has_vocabulary(folder: Path) -> bool:
    names = {file.name for file in folder.iterdir() if not any(file.match(form) for form in WEIGHTS)}
    names -= {"tokenizer_config.json", "special_tokens_map.json"}
    return any(fnmatch(name, form) for name in names for form in ("*token*", "*vocab*", "*.model", "merges.txt"))


def _none_there(source: str) -> str:
    return f"{source} has no tokenizer ({', '.join(VOCABULARIES)}); put the model's beside its weights"


def _hint(error: Exception) -> str:
    """What to do where the error's own line does not say it."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package not in ("", "transformers"):
        return f"; pip install {package}"
    if "tiktoken" in str(error):  # what transformers tries where sentencepiece cannot read tokenizer.model
        return "; or its tokenizer.model is damaged: get it again"
    return code_hint(error)
