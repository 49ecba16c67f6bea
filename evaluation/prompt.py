"""Templates of tasks: jinja2 in its sandbox, over the columns of an item.

`{{ question }}`, nested `{{ choices.text[0] }}`, with all that jinja2 can do to them and, of regular expressions,
`sub('PATTERN', 'text')`; a column whose name is no identifier is `{{ row["the name"] }}`. What a template leaves out is
left out; what is neither a text nor a number, null or a list, is refused.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import regex
from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined
from jinja2.environment import TemplateExpression
from jinja2.sandbox import ImmutableSandboxedEnvironment

SHOWN_COLUMNS = 8  # of an item that lacks the right one
SECONDS = 1.0  # for a pattern on one text


class _Environment(ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        """A column before the method of a dict that is called the same: `items`, `values`, `keys`."""
        return obj[attribute] if isinstance(obj, Mapping) and attribute in obj else super().getattr(obj, attribute)


def _printable(value: Any) -> Any:
    """Refuse what Python would write in its own way: None, ['a', 'b'], <built-in method ...>."""
    if isinstance(value, str | Undefined):  # the latter says itself what it lacks
        return value
    if value is None or isinstance(value, Iterable) or callable(value):
        raise ValueError(f"{'null' if value is None else type(value).__name__} where a text or a number is needed")
    return value


_ENVIRONMENT = _Environment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_printable)
_ENVIRONMENT.filters["sub"] = lambda text, pattern, other: regex.sub(pattern, other, text, timeout=SECONDS)
_ONE_EXPRESSION = re.compile(r"\{\{((?:(?!\}\}|\{\{).)*)\}\}", re.DOTALL)
_FIELD = re.compile(r"\{(\w+)\}")


def check(key: str, template: str) -> None:
    """Refuse what is no template, and one that has columns in single braces only."""
    try:
        _compiled(template)
    except TemplateSyntaxError as error:
        raise ValueError(f"{key}={template!r} is no template ({error.message}); {_HOW}") from None
    field = _FIELD.search(template)
    if field and not re.search(r"\{[{%]", template):
        raise ValueError(f"{key}={template!r} holds no column; write {{{{ {field[1]} }}}} instead of {field[0]}")


def check_pattern(key: str, pattern: str | None) -> None:
    """Refuse what is no regular expression."""
    try:
        regex.compile(pattern or "")
    except regex.error as error:
        raise ValueError(f"{key}={pattern!r} is no pattern ({error})") from None


def filled(key: str, template: str, columns: Mapping[str, Any]) -> str:
    """The template with the columns of an item; ValueError when it asks for what is not there."""
    try:
        return _compiled(template).render({**columns, "row": columns})
    except Exception as error:  # whatever the expressions of a template raise
        raise _refusal(key, error, columns) from None


def value(key: str, template: str, columns: Mapping[str, Any]) -> Any:
    """What a template of one expression gives, a list for one; the text of any other."""
    expression = _ONE_EXPRESSION.fullmatch(template.strip())
    if expression is None:
        return filled(key, template, columns)
    try:
        result = _expression(expression[1])({**columns, "row": columns})
        if isinstance(result, Undefined):
            str(result)  # raises what it lacks
    except Exception as error:
        raise _refusal(key, error, columns) from None
    return result


def texts(key: str, template: str, columns: Mapping[str, Any]) -> list[str]:
    """The texts that a template gives: one, or those of a list; ValueError when one is empty."""
    result = value(key, template, columns)
    try:
        listed = [str(_printable(text)) for text in (result if isinstance(result, list | tuple) else [result])]
    except ValueError as error:
        raise _refusal(key, error, columns) from None
    if not listed or not all(text.strip() for text in listed):
        raise ValueError(f"{key} is empty")
    return listed


def text(key: str, template: str, columns: Mapping[str, Any]) -> str:
    """The template filled in; ValueError when nothing is left."""
    result = filled(key, template, columns)
    if not result.strip():
        raise ValueError(f"{key} is empty")
    return result


_HOW = "write columns as {{ question }}"


@cache
def _compiled(template: str) -> Template:
    return _ENVIRONMENT.from_string(template)


@cache
def _expression(text: str) -> TemplateExpression:
    return _ENVIRONMENT.compile_expression(text, undefined_to_none=False)


def _refusal(key: str, error: Exception, columns: Mapping[str, Any]) -> ValueError:
    shown = ", ".join(list(map(str, columns))[:SHOWN_COLUMNS]) or "nothing"
    return ValueError(f"{key}: {' '.join(str(error).split())}; it has {shown}")
