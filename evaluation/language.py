"""Languages by their codes, however people write them: zh, zh-CN, zh_Hans, zho_Hans (FLORES), ZH."""

import re

NAMES = {
    "en": "English",
    "fr": "French",
    "de": "German",
    "es": "Spanish",
    "it": "Italian",
    "pt": "Portuguese",
    "zh": "Chinese",
    "ja": "Japanese",
    "ru": "Russian",
    "ko": "Korean",
    "th": "Thai",
    "lo": "Lao",
    "my": "Burmese",
    "km": "Khmer",
    "bo": "Tibetan",
    "yue": "Cantonese",
}
_OF_THREE = {
    "eng": "en",
    "fra": "fr",
    "fre": "fr",
    "deu": "de",
    "ger": "de",
    "spa": "es",
    "ita": "it",
    "por": "pt",
    "zho": "zh",
    "chi": "zh",
    "cmn": "zh",
    "jpn": "ja",
    "rus": "ru",
    "kor": "ko",
    "tha": "th",
    "lao": "lo",
    "mya": "my",
    "bur": "my",
    "khm": "km",
    "bod": "bo",
    "tib": "bo",
}  # ISO 639-3 and 639-2/B


def normalized(code: str) -> str:
    """The code of two letters where there is one, else the language's part of the code, in lower case."""
    language = re.split(r"[-_]", code.strip().lower())[0]
    return _OF_THREE.get(language, language)


def name(code: str) -> str:
    """What the language is called; the code where that is not known."""
    return NAMES.get(normalized(code), code)
