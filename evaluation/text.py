"""Words of a text, in languages with and without spaces between them."""

import re
from collections.abc import Sequence

# kana, Han with its extensions, half-width kana. Hangul is left out: Korean puts spaces between words.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
# Thai, Lao, Tibetan (its letters, not the dots between its syllables), Burmese, Khmer: no spaces either
SOUTH_EAST = "\u0e00-\u0eff\u0f40-\u0fbc\u1000-\u109f\u1780-\u17ff"
HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
_UNSPACED = CJK + SOUTH_EAST
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Lower-case words; in languages that write no spaces every character is a word of its own."""
    return _WORD.findall(text.lower())


def share(characters: str, texts: Sequence[str]) -> float:
    """Share of some characters (ranges of a pattern) among all that are no white space."""
    text = "".join("".join(texts).split())
    return len(re.findall(f"[{characters}]", text)) / max(1, len(text))
