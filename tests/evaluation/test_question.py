"""Questions with options: how an answer names its option, and what an item may lack."""

from pathlib import Path
from typing import Any

import pytest

from slimrun.evaluation.task.multiple_choice import MultipleChoice
from tests.evaluation import shapes


def answers(folder: Path, *items: tuple[list[str], object]) -> list[int]:
    """Which option is right, by items of options and answer."""
    rows = [{"question": "q", "options": options, "answer": answer} for options, answer in items]
    own = MultipleChoice(path=str(shapes.written(folder, "boolq", rows)), limit=len(rows))
    return [question.answer for question in own._questions()]


@pytest.mark.parametrize(
    ("answer", "index"),
    [(2, 2), ("2", 2), (True, 1), ("B", 1), ("wool", 2)],
    ids=["number", "cell", "bool", "B", "text"],
)
def test_an_answer_is_a_number_a_letter_or_a_text(answer: object, index: int, tmp_path: Path) -> None:
    rows = [{"question": "q", "options": ["wood", "iron", "wool"], "answer": answer}]
    path = shapes.written(tmp_path, "boolq", rows)
    assert MultipleChoice(path=str(path), limit=1)._questions()[0].answer == index


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"answer": "D"}, {}, r"answer 'D' is no option; allowed: a number from 0 to 2, a letter to C, its text"),
        ({"answer": "3"}, {}, r"answer '3' is no option"),
        ({"answer": ""}, {}, r"answer '' is no option"),
        ({"answer": 3}, {}, r"answer 3 is out of range; allowed: 0 to 2"),
        ({"answer": 1.0}, {}, r"answer 1.0 is out of range"),
        ({"options": ["a"]}, {}, r"options are fewer than two"),
        ({"options": ["a", " "]}, {}, r"options is empty"),
        ({"question": ""}, {"prompt": "{{ question }}"}, r"prompt is empty"),
        ({}, {"prompt": "{{ frage }}"}, r"prompt: 'frage' is undefined; it has question, options, answer"),
        ({}, {"options": "{{ options.text }}"}, r"options: 'list object' has no attribute 'text'; it has question"),
        ({}, {"answer": "{{ options.index('x') }}"}, r"answer: 'x' is not in list; it has question"),
        (
            {},
            {"prompt": "{{ question.__class__ }}"},
            r"prompt: access to attribute '__class__' of 'str'",
        ),
    ],
)
def test_what_an_item_lacks_is_named_with_its_line(
    row: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    whole = {"question": "q", "options": ["wood", "iron", "wool"], "answer": 0}
    path = shapes.written(tmp_path, "boolq", [whole, whole | row])
    with pytest.raises(ValueError, match=f"^path=.*boolq.jsonl, line [12]: {message}"):
        MultipleChoice(path=str(path), limit=2, **changes).check()


METALS, VITAMINS, SUMS = ["wood", "iron", "wool"], ["C", "A", "B"], ["1", "2", "0"]


@pytest.mark.parametrize(
    ("items", "right"),
    [
        ([(METALS, "B"), (VITAMINS, "A")], [1, 0]),
        ([(METALS, "iron"), (VITAMINS, "A")], [1, 1]),
        ([(METALS, "1"), (SUMS, "1")], [1, 1]),
        ([(METALS, "iron"), (SUMS, "1")], [1, 0]),
        ([(SUMS, 1), (SUMS, 0)], [1, 0]),
        ([(["A", "B", "C"], "B"), (["A", "B", "C"], "C")], [1, 2]),
        ([(["yes", "yes", "no"], "no")], [2]),
    ],
    ids=["letters", "texts", "cells of numbers", "texts that are numbers", "numbers", "either", "once"],
)
def test_all_answers_of_a_set_are_read_alike(
    items: list[tuple[list[str], object]], right: list[int], tmp_path: Path
) -> None:
    assert answers(tmp_path, *items) == right
    assert answers(tmp_path, *items[::-1]) == right[::-1]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(METALS, "B"), (METALS, "C"), (METALS, "wood")], r"line 3: answer 'wood' is no letter, as those of other"),
        (
            [(METALS, "wool"), (METALS, "B"), (METALS, "wood")],
            r"line 2: answer 'B' is no text, as those of other items",
        ),
        ([(METALS, 0), (METALS, 1), (METALS, "A")], r"line 3: answer 'A' is no number, as those of other items are"),
        (
            [(["A", "B"], "B"), (VITAMINS, "A")],
            r"line 2: answer is the text of option 1 and the letter of option 0, and in all items both",
        ),
        ([(SUMS, "1")], r"line 1: answer is the text of option 0 and the number of option 1, and in all items"),
    ],
)
def test_answers_in_a_mixture_or_in_two_ways_are_refused(
    items: list[tuple[list[str], object]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^path=.*boolq.jsonl, {message}") as refused:
        answers(tmp_path, *items)
    assert "\n" not in str(refused.value)


def test_more_options_than_letters(tmp_path: Path) -> None:
    many = [f"option {i}" for i in range(30)]
    assert answers(tmp_path, (many, "option 29"), (many, "option 3")) == [29, 3]
    assert answers(tmp_path, (many, "29")) == [29]
    assert answers(tmp_path, (many, "Z")) == [25]
    with pytest.raises(
        ValueError, match=r"answer 'z' is no option; allowed: a number from 0 to 29, a letter to Z, its"
    ):
        answers(tmp_path, (many, "z"))
