"""`report.html` of a run: verdicts first, then sizes, samples to unfold, layers; one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from slimrun.runner.report.page import TEXTS, Cell, image, number, page, row, table, text
from slimrun.runner.report.table import HOW_TO_READ, Table, beside, overall, sizes, verdicts
from slimrun.runner.result import Result

ITEM = ("input", "reference", "float", "quantized")  # the texts of a sample; what else it tells are numbers
LAYER_COLUMNS = ("name", "shape", "bits", "entropy", "sqnr_db", "input_low", "input_high", "observer", "note")


def render(result: Result, folder: Path, command: str) -> str:
    """The page, with the pictures of the run's folder inside."""
    body = [_table(verdicts(result.scores)), f"<p><strong>{escape(overall(result.scores))}</strong></p>"]
    body += [f"<p><strong>gate {escape(result.gate.line)}</strong></p>"] if result.gate else []
    body += [f"<p>{escape(f'{score.task}: {score.decides}')}</p>" for score in result.scores if score.decides]
    body += [f'<p class="quiet">{escape(HOW_TO_READ)} Click a heading to sort.</p>']
    body += [f"<p>note: {escape(note)}</p>" for note in result.warnings]
    body += [_table(sizes(result.metrics)), _table(beside(result.scores))]
    body += [image("scores", (folder / "scores.png").read_bytes())]
    for name, report in result.reports.items():
        if report.samples:
            body += [f"<details><summary>samples of {escape(name)}</summary>", _samples(report.samples), "</details>"]
    body += ["<h2>Layers</h2>", image("layers", (folder / "layers.png").read_bytes())]
    body += [table(LAYER_COLUMNS, [row([_cell(layer[key]) for key in LAYER_COLUMNS]) for layer in result.layers])]
    signatures = [f"<li>{escape(score.label)}: <code>{escape(score.signature)}</code></li>"
                  for score in result.scores if score.signature]  # fmt: skip
    body += ["<h2>How the scores came about</h2>", "<ul>", *signatures, "</ul>"]
    body += [f"<details><summary>command that reproduces it</summary><code>{escape(command)}</code></details>"]
    return page(f"slimrun {folder.name}", body)


def _table(shown: Table) -> str:
    """A table that sorts by the numbers which its cells begin with."""
    return table(shown.columns, [row(list(map(_told, shown.columns, cells))) for cells in shown.rows])


def _told(column: str, cell: str) -> Cell:
    return text(cell) if column in TEXTS else (escape(cell), cell.partition(" ")[0].strip("<%"), "")


def _samples(samples: Sequence[Mapping[str, str]]) -> str:
    columns = list(samples[0])
    cells = [[text(item[key]) if key in ITEM else _told(key, item[key]) for key in columns] for item in samples]
    return table(columns, list(map(row, cells)), texts=ITEM)


def _cell(value: object) -> Cell:
    return number(value, "{:.4g}") if isinstance(value, float) else text("" if value is None else str(value))
