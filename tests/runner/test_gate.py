"""gate=POLICY.yaml: exit status 3 and why, in a run, in a sweep and between two finished runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from slimrun.runner import compare, policy
from slimrun.runner.folder import SCORES, write_scores
from tests.evaluation.test_gate import row
from tests.runner.console import FAST, results, slimrun
from tests.runner.test_compare import finished

FAILS = "tasks: {perplexity: {tier: required}, translation: {tier: supporting}}"


def gate(folder: Path, content: str) -> str:
    (folder / "policy.yaml").write_text(content)
    return f"gate={folder / 'policy.yaml'}"


def test_a_run_that_does_not_pass_ends_with_3_and_says_why(tmp_path: Path) -> None:
    status, out, err = slimrun(tmp_path, *FAST, "tracking=none", "hydra.run.dir=run", gate(tmp_path, FAILS))
    assert status == 3, err
    line = next(line for line in out.splitlines() if line.startswith("gate not"))
    assert line.startswith("gate not certified: perplexity (required) inconclusive (baseline perplexity ")
    assert line.endswith("; translation (supporting) was not run")
    [result] = results(tmp_path)
    assert result["status"] == "ok"
    assert result["gate/verdict"] == "not certified"
    assert f"gate {result['gate/reason']}" == line
    assert f"**Gate {result['gate/reason']}**" in (tmp_path / "run" / "report.md").read_text()
    assert "gate not certified" in (tmp_path / "run" / "report.html").read_text()
    assert "gate: nothing will be certified without task translation" in err


def test_a_policy_belongs_to_what_a_job_is(tmp_path: Path) -> None:
    sweep = ["-m", *FAST, "quant.fraction=0.02,0.03", "tracking=none", "hydra.sweep.dir=sweep"]
    status, out, err = slimrun(tmp_path, *sweep, gate(tmp_path, FAILS))
    assert status == 3, err
    assert "gate: not passed by 2 of 2 jobs: 0, 1" in out
    assert slimrun(tmp_path, *sweep, gate(tmp_path, FAILS))[0] == 3, "done already, and still not passed"
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [line["gate"] for line in record["summary"]] == ["not certified"] * 2
    assert "best.gate" not in record["tags"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no tasks"),
        ("tasks: [perplexity]", "holds no tasks"),
        ("{tasks: {perplexity: {}}, guardrail: 3}", "guardrail: no such key; did you mean guardrail_pct?; allowed:"),
        ("tasks: {perplexity: {tier: must}}", "tasks.perplexity.tier=must is unknown; allowed: required"),
        ("tasks: {perplexity: {tier: [must]}}", "tasks.perplexity.tier=[must] is unknown; allowed: required"),
        ("tasks: {perplexity: {level: 1}}", "tasks.perplexity.level: no such key; allowed: tier, margin"),
        ("tasks: {perplexity: {margin: much}}", "tasks.perplexity.margin=much: expected a number; allowed: 0 or more"),
        ("tasks: {perplexity: {margin: .inf}}", "tasks.perplexity.margin=inf: expected a number"),
        ("tasks: {perplexity: {margin: 1e400}}", "tasks.perplexity.margin=inf: expected a number"),
        ("tasks: {perplexity: {margin: .nan}}", "tasks.perplexity.margin=nan: expected a number"),
        ("{tasks: {perplexity: {}}, guardrail_pct: true}", "guardrail_pct=true: expected a number; allowed: 0 or more"),
        ("tasks: {perplexity: false}", "tasks.perplexity=false: expected keys; allowed: tier, margin"),
        ("tasks: {perplexity: 0}", "tasks.perplexity=0: expected keys"),
        ("tasks: {perplexity: required}", "tasks.perplexity=required: expected keys"),
        ("a: &a [*a]", "a value of a YAML file refers to itself"),
        ("tasks: {", "line 1: expected the node content, but found '<stream end>'"),
    ],
)
def test_a_wrong_policy_is_one_line_and_2(tmp_path: Path, content: str, message: str) -> None:
    status, out, err = slimrun(tmp_path, *FAST, gate(tmp_path, content))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"gate={tmp_path / 'policy.yaml'}: {message}" in err


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^gate=absent.yaml cannot be read"):
        policy.read("absent.yaml")


def compared(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["slimrun-compare", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        compare.main()
    return int(end.value.code or 0)


def test_finished_runs_are_held_against_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = finished(tmp_path / "a", 0.1), finished(tmp_path / "b", 0.5)
    file = tmp_path / "policy.yaml"
    file.write_text("tasks: {perplexity: {}}")
    assert compared(monkeypatch, a, b, "--gate", file) == 3
    out, _ = capsys.readouterr()
    assert out.splitlines()[-1] == "gate failed: perplexity (required) worse (margin 5 %)"
    write_scores(a / SCORES, [row("perplexity", -1, 1)])
    assert compared(monkeypatch, a, "--gate", file) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "gate passed: perplexity"
    assert compared(monkeypatch, b, "--gate", file) == 2, "it left no scores"
    assert "scores.json is missing or damaged" in capsys.readouterr().err
    assert compared(monkeypatch, a) == 2
    assert "RUN_B is needed, or --gate" in capsys.readouterr().err
    assert compared(monkeypatch, a, b, "--gate", "") == 2
    assert "gate=: names no file" in capsys.readouterr().err
