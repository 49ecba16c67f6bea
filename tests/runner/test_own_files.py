"""A user's own yaml that is wrong: one line that names the file, or its key, and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimrun.runner.config import CompositionError, build, composed

HEADER = "# @package task.own\n"
TRANSLATION = "_target_: slimrun.evaluation.task.translation.Translation\n"


def refusal(folder: Path, content: str) -> str:
    """What is said of the task `own`, whose file has this content."""
    (folder / "task").mkdir()
    (folder / "task" / "own.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(CompositionError) as refused:
        build(composed(["model=tiny_llama", "task=[own]"], config_dir=str(folder)))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("a: 'b\n", "line 3: found unexpected end of stream"),
        ("a: [\n", "line 3: expected the node content, but found '<stream end>'"),
        ("a: b: c\n", "line 2: mapping values are not allowed here"),
        ("a: 1\na: 2\n", "line 3: found duplicate key a"),
    ],
)
def test_a_fault_of_yaml_names_file_line_and_problem(tmp_path: Path, content: str, fault: str) -> None:
    assert refusal(tmp_path, HEADER + content) == f"{tmp_path}/task/own.yaml, {fault}"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (TRANSLATION, "lacks `# @package task.own` in its first line"),
        ("", "lacks `# @package task.own` in its first line"),
        (f"\ufeff{HEADER}{TRANSLATION}", "lacks `# @package task.own` in its first line, before which it has a byte"),
        (f"{HEADER}- a\n", "holds a list; allowed: keys with values"),
    ],
)
def test_keys_that_are_not_where_the_choice_has_them(tmp_path: Path, content: str, fault: str) -> None:
    assert refusal(tmp_path, content).startswith(f"task=own: {tmp_path}/task/own.yaml {fault}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\n", "task.own._target_ is missing"),
        ("_target_: nope.Nope\n", "task.own._target_=nope.Nope: nothing of this name can be imported; allowed"),
        ("_target_: slimrun.evaluation.task.translation.Nope\n", "task.own._target_=slimrun.evaluation.task.transl"),
        ("_target_: os.path.join\n", "task.own._target_=os.path.join: this is no dataclass"),
        ("_target_: builtins.dict\n", "task.own._target_=builtins.dict: this is no dataclass"),
        ("_target_: 3\n", "task.own._target_=3: nothing of this name"),
        ("_target_:\n", "task.own._target_=null: nothing of this name"),
        ("_target_: slimrun.runner.cache.Cache\n", "task.own.dir is missing; allowed: text"),
        (f"{TRANSLATION}source: no\n", 'task.own.source=false: expected text; YAML reads no, yes, off and on as false'),
        (f"{TRANSLATION}hub: {{id: x}}\n", "task.own.hub={id:x}: expected null or keys with their _target_"),
        ("a: &a [*a]\n", "a value of a YAML file refers to itself"),
    ],
)  # fmt: skip
def test_keys_that_build_no_task(tmp_path: Path, content: str, message: str) -> None:
    assert refusal(tmp_path, HEADER + content).startswith(message)


def test_a_target_that_is_not_there_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal(tmp_path, f"{HEADER}_target_: nope.Nope\n")
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_choices_that_are_allowed_are_the_users_own_too(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "own.yaml").write_text(HEADER + TRANSLATION)
    with pytest.raises(CompositionError, match=r"task=nothere: no such choice; allowed: arc, .*, own, parables"):
        composed(["task=[perplexity,nothere]"], config_dir=str(tmp_path))
