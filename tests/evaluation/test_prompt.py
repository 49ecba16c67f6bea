"""Templates: what they give, and what they refuse."""

from typing import Any

import pytest

from slimrun.evaluation import prompt

ITEM = {"question": "q", "options": ["x", "y"], "hint": None}


def test_braces_of_old_templates_are_refused_and_those_of_formulas_are_not() -> None:
    with pytest.raises(ValueError, match=r"write \{\{ question \}\} instead of \{question\}"):
        prompt.check("prompt", "Q: {question}")
    prompt.check("prompt", "{{ question }} Put it into \\boxed{answer}.")
    assert prompt.filled("prompt", "{{ row['the name'] }}", {"the name": 3}) == "3"


def test_a_column_may_be_called_as_a_method_is() -> None:
    columns = {name: {name: f"my {name}"} for name in ("items", "keys", "values", "get", "self", "row")}
    for name in columns:
        assert prompt.filled("text", f"{{{{ row.{name}.{name} }}}}", columns) == f"my {name}"
        assert prompt.texts("text", f"{{{{ row.{name}.{name} }}}}", columns) == [f"my {name}"]


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ hint }}", "null"),
        ("{{ options }}", "list"),
        ("{{ row }}", "dict"),
        ("{{ row.items }}", "builtin_function_or_method"),
        ("{{ question.upper }}", "builtin_function_or_method"),
        ("{{ options | map('upper') }}", "generator"),
        ("{{ none }}", "null"),
    ],
)
def test_what_python_would_write_in_its_own_way_is_refused(template: str, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^prompt: {kind} where a text or a number is needed; it has question, opt"):
        prompt.filled("prompt", f"Q: {template}", ITEM)


@pytest.mark.parametrize(("given", "kind"), [(None, "null"), (["x", None], "null"), ([["x"], ["y"]], "list")])
def test_so_it_is_as_one_of_several_texts(given: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^options: {kind} where a text or a number is needed; it has given"):
        prompt.texts("options", "{{ given }}", {"given": given})
    assert prompt.texts("options", "{{ given }}", {"given": ["x", 2.5]}) == ["x", "2.5"]
