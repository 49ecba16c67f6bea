"""What a sweep leaves for a person: its table, pareto.png and report.html; and pareto.json for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slimrun.ops.files import replacing
from slimrun.runner.folder import write_json
from slimrun.runner.report import page
from slimrun.runner.report.pareto import jobs, panels

PRIMARY = ("/quant", "/accuracy_quant", "/rougeL_quant", "/bleu_quant")  # the score of a task that the table shows


def write(sweep_folder: Path) -> list[Path]:
    """Write the three files of a sweep's folder, each atomically, and return their paths."""
    from slimrun.runner.report import pictures  # matplotlib takes half a second to import

    found = jobs(sweep_folder)
    drawn = panels(found)
    paths = [sweep_folder / name for name in ("pareto.json", "pareto.png", "report.html")]
    described = [{**asdict(panel), "front": [point.job for point in panel.front]} for panel in drawn]
    write_json(paths[0], {"jobs": [asdict(job) for job in found], "panels": described})
    with replacing(paths[1], 0o644) as scratch:
        pictures.pareto(scratch, drawn)
    with replacing(paths[2], 0o644) as scratch:
        scratch.write_text(page.render(sweep_folder, found, drawn, paths[1].read_bytes()), encoding="utf-8")
    return paths


def row(
    job: dict[str, Any], results: dict[str, Any], scores: Sequence[str], runs: dict[int, str], common: set[str]
) -> dict[str, Any]:
    """A row of the table: a job's own overrides, bits, scores, verdict, seconds, status and run."""
    verdicts = [str(value).split(" (")[0] for key, value in results.items() if key.endswith("/verdict")]
    status = f"{job['status']}: {results['error']}" if "error" in results else job["status"]
    return {
        "job": job["number"],
        "overrides": " ".join(item for item in job["overrides"] if item not in common),
        "bits": results.get("size/bits_per_weight"),
        **{key: results.get(key) for key in scores},
        "verdict": ", ".join(verdicts),
        "seconds": round(sum(value for key, value in results.items() if key.startswith("time/"))),
        "status": status,
        "run": runs.get(job["number"], "")[:8],
    }


def best(summary: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Tags of the parent run that name the job with the fewest bits, and with the best of each score."""
    tags = {}
    for key in dict.fromkeys(key for row in summary for key in row if key == "bits" or key.endswith(PRIMARY)):
        rows = [row for row in summary if row[key] is not None]
        if not rows:
            continue
        smaller = key == "bits" or key.endswith("/quant")  # bits and perplexity
        winner = min(rows, key=lambda row: row[key] if smaller else -row[key])
        tags[f"best.{key}"] = f"{winner[key]:.4g}: job {winner['job']} ({winner['overrides']}), run {winner['run']}"
    return tags


def cell(value: object) -> str:
    """A value of a row as the table shows it."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
