"""Words of a text, in languages with and without spaces between them."""

import re
from collections.abc import Sequence

# kana, Han with its extensions, half-width kana. Hangul is left out: Korean puts spaces between words.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_WORD = re.compile(f"[{CJK}]|[^\\W{CJK}]+")


def words(text: str) -> list[str]:
    """Lower-case words; every character of Chinese and Japanese, which write no spaces, is a word of its own."""
    return _WORD.findall(text.lower())


def cjk_share(texts: Sequence[str]) -> float:
    """Share of Chinese and Japanese characters among all that are no white space."""
    text = "".join("".join(texts).split())
    return len(re.findall(f"[{CJK}]", text)) / max(1, len(text))
