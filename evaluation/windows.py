"""Equal windows of a text, each with the document that it is from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import regex

from slimrun.evaluation.base import IntArray

Encode = Callable[[str], list[int]]

# where a document begins in a text that does not say: a line of `<doc ...>`, as corpora of web pages have them; without
# any the line after an empty one
MARKED, AFTER_EMPTY = DOCUMENTS = (r"^<doc\b", r"(?<=\n\n)(?!\n)")
SECONDS = 10.0  # for a pattern of the user on the whole text


@dataclass(frozen=True)
class Windows:
    """Windows of tokens; what is measured on those of one document is alike, so it counts as one observation."""

    ids: IntArray  # [W, T]
    documents: IntArray  # [W], by number


def documents(text: str, beginning: str | None) -> list[str]:
    """The text cut where a document begins: at each match of a pattern, or by `DOCUMENTS`.

    ArithmeticError when the pattern takes too long.
    """
    for pattern in [beginning] if beginning else DOCUMENTS:
        try:
            starts = [match.start() for match in regex.finditer(pattern, text, regex.MULTILINE, timeout=SECONDS)]
        except TimeoutError:
            told = f"document={pattern} takes more than {SECONDS:g} s on the text"
            raise ArithmeticError(f"{told}; repeat less inside of what is repeated") from None
        if starts:
            ends = [0, *starts, len(text)]
            return [part for start, end in pairwise(ends) if (part := text[start:end]).strip()]
    return [text]


def by_empty_lines(text: str) -> list[str]:
    """The documents of a text where nothing but empty lines tells them, none of another."""
    return [] if regex.search(MARKED, text, regex.MULTILINE) else documents(text, AFTER_EMPTY)


def first_of_each(encode: Encode, texts: Sequence[str], size: int, limit: int) -> Windows:
    """The first window of each document, of those that are long enough."""
    first = []
    for number, text in enumerate(texts):
        ids = encode(text)
        if len(ids) >= size:
            first.append((number, ids[:size]))
        if len(first) == limit:
            break
    return Windows(_rows([ids for _, ids in first], size), np.array([number for number, _ in first], np.int64))


def spread(encode: Encode, text: str, parts: Sequence[str], size: int, limit: int) -> Windows:
    """`limit` windows evenly over a text of documents, all of them where it has no more.

    A window is of the document that its middle lies in, found by the tokens of each document by itself: the text is
    encoded as a whole, as papers do, which moves the borders by a token.
    """
    ids = encode(text)
    there = len(ids) // size
    taken = [index * there // limit for index in range(limit)] if there > limit else list(range(there))
    apart = np.cumsum([len(encode(part)) for part in parts])
    ends = apart * (len(ids) / max(1, apart[-1]))
    middles = (np.array(taken, np.int64) + 0.5) * size
    numbers = np.minimum(np.searchsorted(ends, middles, side="right"), len(parts) - 1)
    return Windows(_rows([ids[index * size : (index + 1) * size] for index in taken], size), numbers.astype(np.int64))


def _rows(windows: Sequence[Sequence[int]], size: int) -> IntArray:
    return np.array(windows, np.int64).reshape(-1, size)
