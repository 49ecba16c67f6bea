"""Questions that go through a model together: their prefixes are equally long, so nothing is padded before them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from slimrun.ops.model.text import Prefixed

QUESTIONS = 8  # in a group: rows enough for a fast product
ROWS = 256  # tokens of their options, each of which takes a row of the vocabulary


def of_one_shape(questions: Sequence[Prefixed]) -> list[list[int]]:
    """Numbers of questions with prefixes of one length and as many options, group by group; none without options."""
    shapes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (prefix, options) in enumerate(questions):
        if options:
            shapes[len(prefix), len(options)].append(index)
    groups = []
    for (_, count), alike in shapes.items():
        by_length = sorted(alike, key=lambda index: _longest(questions[index]))
        while by_length:
            room = max(1, min(QUESTIONS, ROWS // (count * _longest(questions[by_length[-1]]))))
            groups.append(sorted(by_length[-room:]))
            del by_length[-room:]
    return groups


def padded(questions: Sequence[Prefixed]) -> tuple[list[list[int]], list[list[int]]]:
    """The prefixes, and all their options with zeros behind, which change nothing before them."""
    length = max(map(_longest, questions))
    options = [option for _, several in questions for option in several]
    return [list(prefix) for prefix, _ in questions], [[*option, *[0] * (length - len(option))] for option in options]


def _longest(question: Prefixed) -> int:
    return max(map(len, question[1]))
