"""What a sweep leaves for a person: its table, pareto.png and report.html; and pareto.json for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slimrun.evaluation.gate import PASSED
from slimrun.ops.files import replacing
from slimrun.runner.folder import RUN, read_json, write_json
from slimrun.runner.report import page
from slimrun.runner.report.pareto import BITS, Job, Panel

Row = dict[str, Any]

PROMPTS, GATE = "data/calibration_prompts", "gate/verdict"


def write(sweep_folder: Path, jobs: Sequence[Job], drawn: Sequence[Panel]) -> list[Path]:
    """Write the three files of a sweep's folder, each atomically, and return their paths."""
    from slimrun.runner.report import pictures  # matplotlib takes half a second to import

    paths = [sweep_folder / name for name in ("pareto.json", "pareto.png", "report.html")]
    described = [
        {**asdict(panel), "front": [point.job for point in panel.front], "best": panel.best} for panel in drawn
    ]
    write_json(paths[0], {"jobs": [asdict(job) for job in jobs], "panels": described})
    with replacing(paths[1], 0o644) as scratch:
        pictures.pareto(scratch, drawn)
    with replacing(paths[2], 0o644) as scratch:
        scratch.write_text(page.render(sweep_folder, jobs, drawn, paths[1].read_bytes()), encoding="utf-8")
    return paths


def summary(sweep_folder: Path, jobs: Sequence[Job], common: set[str]) -> list[Row]:
    """The table: of each job its own overrides, bits, each task's own score, verdicts, seconds, status and run.

    Where jobs were calibrated on different numbers of prompts, it says on how many: a method may want more of them.
    """
    differ = len({job.results[PROMPTS] for job in jobs if PROMPTS in job.results}) > 1
    labels = list(dict.fromkeys(score.label for job in jobs for score in job.scores if score.verdict))
    gated = any(GATE in job.results for job in jobs)
    rows: list[Row] = []
    for job in jobs:
        own = {score.label: score for score in job.scores if score.verdict}
        run = (read_json(sweep_folder / job.folder / RUN) or {}).get("run_id", "")
        rows.append({
            "job": job.number,
            "overrides": " ".join(item for item in job.overrides if item not in common),
            **({"prompts": job.results.get(PROMPTS)} if differ else {}),
            "bits": job.results.get(BITS),
            **{label: own[label].quant_value if label in own else None for label in labels},
            "verdict": ", ".join(score.word for score in own.values()),
            **({"gate": job.results.get(GATE, "")} if gated else {}),
            "seconds": round(job.seconds),
            "status": job.status,
            "run": str(run)[:8],
        })  # fmt: skip
    return rows


def best(jobs: Sequence[Job], rows: Sequence[Row], drawn: Sequence[Panel]) -> dict[str, str]:
    """Tags of the parent run: fewest bits, of all jobs and of those that pass the gate, and the best of each task."""
    signs = {score.label: (score.task, -1 if score.higher_is_better else 1)
             for job in jobs for score in job.scores if score.verdict}  # fmt: skip
    tags, winners = {}, {}
    for label, (name, sign) in {"bits": ("bits", 1), **signs}.items():
        if with_score := [row for row in rows if row[label] is not None]:
            winners[name] = min(with_score, key=lambda row: (sign * row[label], row["bits"]))  # as Panel.best
            tags[f"best.{name}"] = _named(winners[name], label)
    for panel in drawn:
        if panel.ties and panel.best == winners[panel.task]["job"]:  # others are of jobs that were measured otherwise
            tags[f"best.{panel.task}"] += f"; not told apart from it: job {', '.join(map(str, panel.ties))}"
    if passed := [row for row in rows if row.get("gate") == PASSED]:
        tags["best.gate"] = _named(min(passed, key=lambda row: row["bits"]), "bits")
    return tags


def gated_out(rows: Sequence[Row]) -> list[int]:
    """Numbers of the finished jobs that did not pass their gate."""
    return [row["job"] for row in rows if row.get("gate") not in (None, "", PASSED)]


def _named(row: Row, label: str) -> str:
    return f"{label} {row[label]:.4g}: job {row['job']} ({row['overrides']}), run {row['run']}"


def cell(value: object) -> str:
    """A value of a row as the table shows it."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
