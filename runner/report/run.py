"""What a run leaves for a person: report.md, layers.csv, pictures; and results.json for programs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from slimrun.evaluation.comparison import Score
from slimrun.evaluation.gate import Decision
from slimrun.ops.calibration.base import Layer
from slimrun.runner.display import print_table
from slimrun.runner.folder import OUTPUTS, RESULTS, SAMPLES, SCORES, write_json, write_outputs, write_scores
from slimrun.runner.report import run_page
from slimrun.runner.report.table import HOW_TO_READ, SIDES, Table, beside, overall, sizes, verdicts
from slimrun.runner.result import Result

SHOWN = 5  # items of each task, for a look; report.html has all
GATE_HEADINGS = ["task", "tier", "verdict", "gate"]


def write(result: Result, output: Path, command: str, record: Mapping[str, object]) -> None:
    """Write report, tables and pictures, and results.json with the job's own keys last.

    `command` reproduces the run.
    """
    from slimrun.runner.report import pictures  # matplotlib takes half a second to import

    write_layers(output / "layers.csv", result.layers)
    pictures.layers(output / "layers.png", result.layers)
    pictures.scores(output / "scores.png", result.scores)
    write_scores(output / SCORES, result.scores)
    write_json(output / SAMPLES, {name: task.samples for name, task in result.reports.items()})
    write_outputs(output / OUTPUTS, result.outputs)
    (output / "report.md").write_text(report(result, command), encoding="utf-8", errors="backslashreplace")
    html = run_page.render(result, output, command)
    (output / "report.html").write_text(html, encoding="utf-8", errors="backslashreplace")
    content = {"status": "ok", "config_hash": result.config_hash, **record, **result.metrics}
    write_json(output / RESULTS, content)


def show(title: str, scores: Sequence[Score], sizes: Table, sides: Sequence[str] = SIDES) -> None:
    """Verdicts, one line over them and what more items would tell, sizes and the other scores, on stdout."""
    print_table(title, *verdicts(scores, sides))
    print(overall(scores))
    for score in scores:
        if score.decides and score.word == "inconclusive":
            print(f"{score.task}: {score.decides}")
    for table in (sizes, beside(scores, sides)):
        if table.rows:
            print_table("", *table)


def show_gate(decision: Decision) -> None:
    """The gate's table and its line, on stdout."""
    print_table("what the policy says", GATE_HEADINGS, rulings(decision))
    print(f"gate {decision.line}")


def rulings(decision: Decision) -> list[list[str]]:
    """Rows of the gate's table."""
    return [[ruling.task, ruling.tier, ruling.verdict, ruling.outcome] for ruling in decision.rulings]


def report(result: Result, command: str) -> str:
    """The report for a person, in markdown."""
    lines = ["# slimrun report", "", *_table(*verdicts(result.scores)), f"**{overall(result.scores)}**", ""]
    lines += [f"{score.task}: {score.decides}\n" for score in result.scores if score.decides]
    if result.gate:
        lines += [f"**Gate {result.gate.line}**", "", *_table(GATE_HEADINGS, rulings(result.gate))]
    lines += [HOW_TO_READ, "", *(f"note: {warning}\n" for warning in result.warnings)]
    lines += [*_table(*sizes(result.metrics)), *_table(*beside(result.scores)), "![scores](scores.png)", ""]
    lines += ["Reproduce it with:", "", "```sh", command, "```", ""]
    for export in result.exports:
        lines += [f"## Export: {export.target}", "", f"`{export.command}`", ""]
        lines += _table(["changed", "where", "why"], [[item.what, item.where, item.why] for item in export.changes])
        lines += _table(["checked", "found"], [[item.what, item.outcome] for item in export.checks])
    lines += ["## All numbers", "", *_table(["key", "value"], [[k, _plain(v)] for k, v in result.metrics.items()])]
    lines += [
        "## Layers",
        "",
        "![layers](layers.png)",
        "",
        "The ten with the largest weight error (`layers.csv` has all):",
        "",
    ]
    worst = sorted(result.layers, key=_sqnr)[:10]
    columns = ["name", "bits", "entropy", "sqnr_db", "input_low", "input_high", "observer"]
    lines += _table(columns, [[_plain(row[column]) for column in columns] for row in worst])
    lines += _ranking(result.layers)
    for name, task in result.reports.items():
        if task.samples:
            lines += [f"## Samples of {name}", ""]
            for sample in task.samples[:SHOWN]:
                lines += [f"- {key}: {_plain(value)}" for key, value in sample.items()] + [""]
    lines += [f"Configuration hash: `{result.config_hash}`", ""]
    return "\n".join(lines)


def write_layers(path: Path, layers: Sequence[Mapping[str, object]]) -> None:
    """The per-layer table as CSV."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(layers[0] if layers else Layer.__annotations__))
        writer.writeheader()
        writer.writerows(layers)


def _ranking(layers: Sequence[Mapping[str, object]]) -> list[str]:
    """Which inputs lose most on their grids, where the method has measured that."""
    measured = [row for row in layers if np.isfinite(_input_loss(row))]
    worst = sorted(measured, key=_input_loss, reverse=True)[:10]
    if not worst:
        return []
    columns = ["name", "input_loss", "format", "input_loss_left", "input_low", "input_high"]
    title = "The ten whose inputs lose most on a grid (Fisher estimate); with another format, what is left of it:"
    return [title, "", *_table(columns, [[_plain(row[column]) for column in columns] for row in worst])]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    body = ["| " + " | ".join(row) + " |" for row in escaped]
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *body, ""]


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("\n", " ")


def _input_loss(row: Mapping[str, object]) -> float:
    value = row["input_loss"]
    return value if isinstance(value, float) else float("nan")


def _sqnr(row: Mapping[str, object]) -> float:
    value = row["sqnr_db"]
    return float(value) if isinstance(value, float) and np.isfinite(value) else float("inf")
