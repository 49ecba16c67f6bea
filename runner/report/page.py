"""`report.html`: the table of a sweep's jobs and their picture as one file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote, urlsplit

from slimrun.runner.folder import RUN, read_json
from slimrun.runner.report.pareto import Job, Panel

Cell = tuple[str, object, str]  # html, what the column is sorted by, class
COLUMNS = (
    ("bits per weight", "size/bits_per_weight", "{:.3f}"),
    ("KL, nats", "fidelity/kl_mean", "{:.4f}"),
    ("artifact, bytes", "size/artifact_bytes", "{:,}"),
)
FILES = {"report": "report.md", "numbers": "results.json", "layers": "layers.png", "log": "run.log"}
TEXTS = ("overrides", "verdict", "status", "files")


def render(sweep_folder: Path, jobs: Sequence[Job], panels: Sequence[Panel], picture: bytes) -> str:
    """The page; links are relative, so that the sweep's folder can be moved as a whole."""
    shown = titles(panels)
    headings = ["job", "overrides", "status", *(label for label, _, _ in COLUMNS)]
    headings += [text for title in shown for text in (title, "verdict")] + ["seconds", "files"]
    unfinished = sum(not job.ok for job in jobs)
    fronts = [
        f"{title}: {', '.join(f'job {point.job}' for point in panel.front)}" for title, panel in zip(shown, panels)
    ]
    finished = f"{len(jobs)} jobs, {f'{unfinished} without a result' if unfinished else 'all finished'}."
    template = Template(resources.files("slimrun.runner.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"slimrun sweep {sweep_folder.name}"),
        summary=escape(" ".join([finished, *(f"Front of {front}." for front in fronts)])),
        picture=base64.b64encode(picture).decode("ascii"),
        headings="".join(_heading(text) for text in headings),
        rows="\n".join(_row(job, panels, sweep_folder) for job in jobs),
        signatures="\n".join(
            f"<li>{escape(title)} (float {panel.float_score:.4g}, {panel.weights:,} weights): "
            f"<code>{escape(panel.signature)}</code></li>"
            for title, panel in zip(shown, panels)
        ),
    )


def titles(panels: Sequence[Panel]) -> list[str]:
    """Titles of the panels, numbered where several have the same task and score."""
    names = [panel.title for panel in panels]
    return [
        f"{name} ({names[: index + 1].count(name)})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def _heading(text: str) -> str:
    kind = "text" if text in TEXTS else ""
    return f'<th class="{kind}"><button>{escape(text)}</button></th>'


def _row(job: Job, panels: Sequence[Panel], sweep_folder: Path) -> str:
    cells: list[Cell] = [(str(job.number), job.number, ""), _text(job.label or " ".join(job.overrides))]
    cells.append(_text(job.status))
    cells += [_number(job.results.get(key), form) for _, key, form in COLUMNS]
    on_front = False
    for panel in panels:
        point = next((point for point in panel.points if point.job == job.number), None)
        if point is None:
            cells += [_text(""), _text("")]
            continue
        on_front = on_front or point.on_front
        mark = "front" if point.on_front else ""
        interval = f'<br><span class="quiet">{point.low:.4g} to {point.high:.4g}</span>'
        cells.append((f"{point.score:#.4g}{interval}", point.score, mark))
        task = panel.title.partition(":")[0]
        verdict = str(job.results.get(f"{task}/verdict", ""))
        cells.append((escape(verdict).replace(" (", "<br>("), verdict, "text line"))
    seconds = sum(value for key, value in job.results.items() if key.startswith("time/"))
    there = {
        text: f"{job.folder}/{file}" for text, file in FILES.items() if (sweep_folder / job.folder / file).exists()
    }
    links = " ".join(f'<a href="{quote(file)}">{text}</a>' for text, file in there.items())
    links += _tracked(read_json(sweep_folder / job.folder / RUN) or {})
    command = escape(str(job.results.get("repro", "")))
    if command:
        links += f"<details><summary>command that reproduces it</summary><code>{command}</code></details>"
    cells += [_number(seconds or None, "{:.0f}"), (links, job.folder, "text line")]
    body = "".join(
        f'<td class="{kind}" data-value="{escape(str(value), quote=True)}">{html}</td>' for html, value, kind in cells
    )
    return f'<tr class="{"" if job.ok else "failed"}{"front" if on_front else ""}">{body}</tr>'


def _tracked(run: dict[str, Any]) -> str:
    """The job's MLflow run: a link when a server shows it, else its id; "" when it has none."""
    run_id, server = str(run.get("run_id") or ""), urlsplit(str(run.get("uri")))
    if not run_id:
        return ""
    if server.scheme not in ("http", "https"):
        return f" <code>{escape(run_id)}</code>"
    place = server.netloc.rpartition("@")[2]  # without a password
    address = f"{server.scheme}://{place}{server.path.rstrip('/')}/#/runs/{quote(run_id)}"
    return f' <a href="{escape(address, quote=True)}">MLflow</a>'


def _text(text: str) -> Cell:
    return escape(text), text, "text"


def _number(value: float | None, form: str) -> Cell:
    if value is None:
        return "", "", ""
    return form.format(value), value, ""
