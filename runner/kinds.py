"""The kinds of value that fields take: whether a value is of one, and what users call it."""

from __future__ import annotations

from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
LISTS = {int: "a list of whole numbers, e.g. [1,2]", float: "a list of numbers, e.g. [0.1,0.5]",
         str: "a list of texts, e.g. [a,b]"}  # fmt: skip


def fits(value: Any, kind: Any) -> bool:
    """Whether a value has the shape of its kind; how a number is written is OmegaConf's to judge.

    OmegaConf would take true for text, and any keys for an object.
    """
    inner = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    if kind is NoneType:
        return value is None
    if kind in WORDS:
        return not isinstance(value, (NoneType, list, dict, *([bool] if kind is str else [])))
    return not is_dataclass(kind)


def in_words(kind: Any) -> str:
    """What a user is told to write."""
    inner = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(in_words(one) for one in sorted(inner, key=lambda one: one is not NoneType))
    if get_origin(kind) is list:
        return LISTS.get(inner[0], "a list")
    if get_origin(kind) is dict:
        return f"keys with {in_words(inner[1])}"
    return WORDS.get(kind, "keys with their _target_")


def shown(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{shown(item)}' for key, item in value.items())}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
