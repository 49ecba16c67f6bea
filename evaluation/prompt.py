"""Prompt templates of tasks."""

from collections.abc import Sequence


def fills(key: str, template: str, fields: Sequence[str]) -> None:
    """Refuse a prompt template that leaves a field out or names an unknown one."""
    allowed = " ".join(f"{{{name}}}" for name in fields)
    marks = {name: f"<{name}>" for name in fields}
    try:
        filled = template.format(**marks)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(f"{key}={template!r} cannot be filled in ({error}); allowed fields: {allowed}") from None
    if not all(mark in filled for mark in marks.values()):
        raise ValueError(f"{key}={template!r} leaves a field out; it needs {allowed}")
