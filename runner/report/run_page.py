"""`report.html` of a run: verdicts first, then sizes, samples to unfold, layers; one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from slimrun.evaluation.comparison import Score
from slimrun.runner.report.page import Cell, image, number, page, row, table, text
from slimrun.runner.report.table import COLUMNS, SIZES, cells
from slimrun.runner.result import Result

LAYER_COLUMNS = ("name", "shape", "bits", "entropy", "sqnr_db", "input_low", "input_high", "observer", "note")
HOW_TO_READ = """<p class="quiet">A difference is quantized minus float on the same items, with its 95 % interval;
detectable is the smallest one that these items would have shown, noise how far the score
moves when nothing but rounding does: a difference within it is no finding. Click a heading to sort.</p>"""


def render(result: Result, folder: Path, command: str) -> str:
    """The page, with the pictures of the run's folder inside."""
    body = [f"<p><strong>gate {escape(result.gate.line)}</strong></p>"] if result.gate else []
    body += [f"<p>{escape(overall(result.scores))}</p>", *(f"<p>note: {escape(note)}</p>" for note in result.warnings)]
    body += [table(["", "float", "quantized", *COLUMNS], [_score(score) for score in result.scores]), HOW_TO_READ]
    body += [f"<p>{escape(f'{score.task}: {score.decides}')}</p>" for score in result.scores if score.decides]
    sizes = [(text(size.label), number(size.of(result.metrics), size.form)) for size in SIZES]
    body += [table(["", "size"], [row(pair) for pair in sizes]), image("scores", (folder / "scores.png").read_bytes())]
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


def overall(scores: Sequence[Score]) -> str:
    """One line over all verdicts, the worst first."""
    judged = [score for score in scores if score.verdict]
    words = {word: [score.task for score in judged if score.word == word]
             for word in ("worse", "too few to say", "inconclusive", "non-inferior")}  # fmt: skip
    return "; ".join(f"{word}: {', '.join(tasks)}" for word, tasks in words.items() if tasks) or "nothing was judged"


def _score(score: Score) -> str:
    label, *numbers, verdict = cells(score)
    return row([text(label), *((escape(cell), cell.partition(" ")[0].lstrip("<"), "") for cell in numbers),
                text(verdict)])  # fmt: skip


def _samples(samples: Sequence[Mapping[str, str]]) -> str:
    return table(list(samples[0]), [row([text(value) for value in sample.values()]) for sample in samples])


def _cell(value: object) -> Cell:
    return number(value, "{:.4g}") if isinstance(value, float) else text("" if value is None else str(value))
