"""`report.html` of a sweep: the table of its jobs and their picture, one file that needs nothing else."""

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
from slimrun.runner.report.pareto import Job, Panel, Point
from slimrun.runner.report.table import SIZES

Cell = tuple[str, object, str]  # html, what the column is sorted by, class
FILES = {"report": "report.md", "numbers": "results.json", "layers": "layers.png", "log": "run.log"}
TEXTS = ("overrides", "verdict", "status", "files", "name", "shape", "observer", "note", "task", "size", "other score")
HOW_TO_READ = """<p class="quiet">A score's bar is the 95 % interval of its paired difference from the float model.
Marked jobs are on a front: no other job measured alike has both fewer bits and a better score. Click a heading to
sort. Jobs are told apart by their items, paired, with p corrected for all pairs of jobs (Holm).</p>"""


def render(sweep_folder: Path, jobs: Sequence[Job], panels: Sequence[Panel], picture: bytes) -> str:
    """The page; links are relative, so that the sweep's folder can be moved as a whole."""
    shown = titles(panels)
    beside = list(dict.fromkeys(score.label for job in jobs for score in job.scores if not score.verdict))
    headings = ["job", "overrides", "status", *(size.label for size in SIZES)]
    headings += [*(text for title in shown for text in (title, "verdict")), *beside, "seconds", "files"]
    unfinished = sum(not job.ok for job in jobs)
    fronts = [f"{title}: {', '.join(_on_front(panel))}" for title, panel in zip(shown, panels)]
    finished = f"{len(jobs)} jobs, {f'{unfinished} without a result' if unfinished else 'all finished'}."
    signatures = [
        f"<li>{escape(title)} (float {panel.float_score:.4g}, {panel.weights:,} weights): "
        f"<code>{escape(panel.signature)}</code></li>"
        for title, panel in zip(shown, panels)
    ]
    body = [
        f"<p>{escape(' '.join([finished, *(f'Front of {front}.' for front in fronts)]))}</p>",
        *(f"<p>{escape(panel.told)}.</p>" for panel in panels),
        image("scores against size", picture),
        HOW_TO_READ,
        table(headings, [_row(job, panels, beside, sweep_folder) for job in jobs]),
        "<h2>How the scores came about</h2>",
        *("<ul>", *signatures, "</ul>"),
    ]
    return page(f"slimrun sweep {sweep_folder.name}", body)


def _on_front(panel: Panel) -> list[str]:
    """The jobs on the front; what the bits of one buy beside the one before it may be nothing."""
    same = panel.like_the_one_before
    return [f"job {p.job}{' (not told apart from the one before)' if p.job in same else ''}" for p in panel.front]


def page(title: str, body: Sequence[str]) -> str:
    """A whole page, light or dark as the reader has it; tables sort at a click on a heading."""
    template = Template(resources.files("slimrun.runner.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(body))


def image(alt: str, png: bytes) -> str:
    """A picture inside the page."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def table(headings: Sequence[str], rows: Sequence[str], texts: Sequence[str] = TEXTS) -> str:
    """A table that scrolls where the window is narrower; headings of `texts` stand at the left, as their cells do."""
    head = "".join(_heading(heading, "text" if heading in texts else "") for heading in headings)
    return '<div class="wide"><table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table></div>'.format(
        head, "\n".join(rows)
    )


def row(cells: Sequence[Cell], kind: str = "") -> str:
    """A row of a table."""
    body = "".join(
        f'<td class="{kind}" data-value="{escape(str(value), quote=True)}">{html}</td>' for html, value, kind in cells
    )
    return f'<tr class="{kind}">{body}</tr>'


def titles(panels: Sequence[Panel]) -> list[str]:
    """Titles of the panels, numbered where several have the same task and score."""
    names = [panel.title for panel in panels]
    return [
        f"{name} ({names[: index + 1].count(name)})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def _heading(words: str, kind: str) -> str:
    return f'<th class="{kind}"><button>{escape(words)}</button></th>'


def _row(job: Job, panels: Sequence[Panel], beside: Sequence[str], sweep_folder: Path) -> str:
    cells: list[Cell] = [(str(job.number), job.number, ""), text(job.label or " ".join(job.overrides))]
    gate = job.results.get("gate/verdict")
    cells.append(text(f"{job.status}, gate {gate}" if gate else job.status))
    cells += [number(size.of(job.results), size.form) for size in SIZES]
    points = [next((point for point in panel.points if point.job == job.number), None) for panel in panels]
    for point in points:
        cells += [text(""), text("")] if point is None else _scored(point)
    values = {score.label: score.quant_value for score in job.scores}
    cells += [number(values.get(label), "{:.4g}") for label in beside]
    cells += [number(job.seconds or None, "{:.0f}"), (_links(job, sweep_folder), job.folder, "text line")]
    on_front = any(point is not None and point.on_front for point in points)
    return row(cells, f"{'' if job.ok else 'failed'}{'front' if on_front else ''}")


def _scored(point: Point) -> list[Cell]:
    """The score with its interval, and the verdict on it."""
    interval = ""
    if point.low is not None:
        interval = f'<br><span class="quiet">{point.low:.4g} to {point.high:.4g}</span>'
    verdict = escape(point.verdict).replace(" (", "<br>(")
    return [
        (f"{point.score:#.4g}{interval}", point.score, "front" if point.on_front else ""),
        (verdict, point.verdict, "text"),
    ]


def _links(job: Job, sweep_folder: Path) -> str:
    """The job's files that are there, its tracked run, its command."""
    there = {
        text: f"{job.folder}/{file}" for text, file in FILES.items() if (sweep_folder / job.folder / file).exists()
    }
    links = " ".join(f'<a href="{quote(file)}">{text}</a>' for text, file in there.items())
    links += _tracked(read_json(sweep_folder / job.folder / RUN) or {})
    if command := escape(str(job.results.get("repro", ""))):
        links += f"<details><summary>command that reproduces it</summary><code>{command}</code></details>"
    return links


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


def text(words: str) -> Cell:
    """A cell of words."""
    return escape(words), words, "text"


def number(value: float | None, form: str) -> Cell:
    """A cell of a number, empty where there is none."""
    if value is None:
        return "", "", ""
    return form.format(value), value, ""
