"""A tokenizer.json as llama.cpp's vocabulary: tokens, merges, special tokens, and how a text is cut into words first.

llama.cpp knows the cuts of models by name alone, so a tokenizer is taken whose cut is one of those told here; any other
is refused, since a wrong cut makes other tokens without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType

from .source import TOKENIZER as FILE
from .source import Source

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
NO_TOKEN = -1  # what LLaMA's first configs say of padding
CUTS = {  # what cuts a text before merging -> llama.cpp's name of it
    ("digits", "words of GPT-2"): "smollm",
    ("words of GPT-2",): "gpt-2",
    (WORDS.replace("{DIGITS}", "{1,3}"),): "llama-bpe",
    (WORDS.replace("{DIGITS}", ""),): "qwen2",
}


def check_vocabulary(content: Mapping[str, Any] | None) -> None:
    """ValueError when llama.cpp would make other tokens than this tokenizer.json."""
    if content is None:
        raise ValueError(f"there is no {FILE}; gguf carries the tokenizer and is not written without one")
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise _refused(f"a model of the type {kind}")
    if not _is_pieces(content):
        _cut(content)


def write_vocabulary(writer: GGUFWriter, source: Source) -> None:
    """Add everything about the tokenizer to the metadata."""
    content = source.tokenizer or {}
    pieces = _is_pieces(content)
    texts: dict[int, str] = {number: text for text, number in content["model"]["vocab"].items()}
    kinds = {number: _kind(text, pieces) for number, text in texts.items()}
    for added in content.get("added_tokens") or []:
        texts[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    rows = range(source.config["vocab_size"])  # embeddings may have more of them than there are tokens
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre("default" if pieces else _cut(content))
    writer.add_token_list([texts.get(row, f"[PAD{row}]") for row in rows])
    writer.add_token_types([kinds.get(row, TokenType.UNUSED) for row in rows])
    if pieces:
        writer.add_token_scores(_scores(content, [texts.get(row, "") for row in rows]))
        writer.add_add_space_prefix(_begins_with_space(content))
    special = [kind for kind in SPECIAL if (source.config.get(f"{kind}_token_id") or 0) != NO_TOKEN]
    SpecialVocab(source.folder, not pieces, special, len(rows)).add_to_gguf(writer, quiet=True)


def _is_pieces(content: Mapping[str, Any]) -> bool:
    """Whether it is SentencePiece's BPE with single bytes for what has no piece, as LLaMA 2 has it: no cut."""
    cut = content.get("pre_tokenizer")
    cuts = cut is not None and not (cut.get("type") == "Metaspace" and cut.get("split") is False)
    return bool(content["model"].get("byte_fallback")) and not cuts


def _begins_with_space(content: Mapping[str, Any]) -> bool:
    """Whether a text is read as if a space stood before it."""
    scheme = (content.get("pre_tokenizer") or {}).get("prepend_scheme", "never")
    return scheme != "never" or "Prepend" in str(content.get("normalizer"))


def _kind(text: str, pieces: bool) -> TokenType:
    if pieces and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return TokenType.BYTE
    return TokenType.UNKNOWN if pieces and text == "<unk>" else TokenType.NORMAL


def _scores(content: Mapping[str, Any], texts: list[str]) -> list[float]:
    """A piece is as good as the merge that first makes it is early: llama.cpp merges what scores best."""
    first: dict[str, int] = {}
    for number, merge in enumerate(content["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        first.setdefault(left + right, number)
    return [-float(first.get(text, len(first))) for text in texts]


def _cut(content: Mapping[str, Any]) -> str:
    """llama.cpp's name of the cut; ValueError when it has none."""
    top = content.get("pre_tokenizer") or {}
    steps = top.get("pretokenizers", []) if top.get("type") == "Sequence" else [top]
    names = [_step(step) for step in steps]
    cut = tuple(name for name in names if name)
    if cut not in CUTS or content.get("normalizer") not in (None, {"type": "NFC"}):
        raise _refused(f"the cut {' + '.join(cut) or 'none'} and the normalizer {content.get('normalizer')}")
    return CUTS[cut]


def _step(step: Mapping[str, Any]) -> str:
    """A step of the cut, "" for one that cuts nothing."""
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return "digits"
    if step.get("type") == "ByteLevel" and not step.get("add_prefix_space"):
        return "words of GPT-2" if step.get("use_regex", True) else ""
    pattern = (step.get("pattern") or {}).get("Regex")
    if step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert") and pattern:
        return str(pattern)
    return f"{step.get('type')} of a kind not known here"


def _refused(what: str) -> ValueError:
    return ValueError(f"{FILE} has {what}, for which llama.cpp's name is not known here; gguf is not written")
