"""What a run found: sizes, scores, the per-layer table; written as results.json, report.md, layers.csv, pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from torch import Tensor

from slimrun.evaluation.base import Outputs, Report
from slimrun.ops import bundle
from slimrun.ops.compress import entropy_bits
from slimrun.ops.compress.base import Parts
from slimrun.ops.files import replacing
from slimrun.ops.framework.base import Layer, Outline

Metrics = dict[str, float | int | str]

RESULTS = "results.json"
OUTPUTS = "outputs.npz"
UPLOADED = ("config.yaml", "report.md", "layers.csv", "layers.png", "scores.png", OUTPUTS)  # beside the numbers

SCALES = ("deq_scale", "weight_scale")  # either has one number a row, which counts once

HEADLINES = (
    ("bits per weight", "size/bits_per_weight", "{:.3f}"),
    ("share of weights covered", "size/covered_share", "{:.1%}"),
    ("compression ratio", "compress/ratio", "{:.3f}"),
    ("perplexity float", "perplexity/float", "{:.2f}"),
    ("perplexity quantized", "perplexity/quant", "{:.2f}"),
    ("perplexity verdict", "perplexity/verdict", "{}"),
    ("KL to float, nats a token", "fidelity/kl_mean", "{:.4f}"),
    ("top-1 agreement", "fidelity/top1_agreement", "{:.1%}"),
)


@dataclass(frozen=True)
class Sizes:
    """Metrics of the `size` and `compress` groups, and the per-layer table they add up from."""

    metrics: Metrics
    layers: list[dict[str, object]]


@dataclass(frozen=True)
class Result:
    """Everything a finished run has to say."""

    config_hash: str
    metrics: Metrics
    layers: list[dict[str, object]]
    reports: Mapping[str, Report]
    outputs: Mapping[str, Outputs]  # of the quantized model, by task
    weight_file: Path
    warnings: list[str] = field(default_factory=list)

    def write(self, output: Path, command: str, record: Mapping[str, object]) -> None:
        """Write report, tables and pictures, and results.json with the job's own keys last.

        `command` reproduces the run.
        """
        from slimrun.runner import pictures  # matplotlib takes half a second to import

        write_layers(output / "layers.csv", self.layers)
        pictures.layers(output / "layers.png", self.layers)
        pictures.scores(output / "scores.png", self.reports)
        write_outputs(output / OUTPUTS, self.outputs)
        (output / "report.md").write_text(self.report(command), encoding="utf-8", errors="backslashreplace")
        content = {"status": "ok", "config_hash": self.config_hash, **record, **self.metrics}
        write_json(output / RESULTS, content)

    def headlines(self) -> list[list[str]]:
        """Rows of the final table: what was asked, in one look."""
        rows = [[label, form.format(self.metrics[key])] for label, key, form in HEADLINES if key in self.metrics]
        for report in self.reports.values():
            for score in report.scores:
                if not score.name.startswith("perplexity"):
                    rows.append([score.name, f"{score.float_value:.2f} -> {score.quant_value:.2f}"])
        return rows

    def report(self, command: str) -> str:
        """The report for a person, in markdown."""
        lines = ["# slimrun report", "", *(f"- note: {warning}" for warning in self.warnings), ""]
        lines += ["Reproduce it with:", "", "```sh", command, "```", ""]
        lines += _table(["", "value"], self.headlines())
        lines += ["## All numbers", "", *_table(["key", "value"], [[k, _plain(v)] for k, v in self.metrics.items()])]
        lines += [
            "## Layers",
            "",
            "![layers](layers.png)",
            "",
            "The ten with the largest weight error (`layers.csv` has all):",
            "",
        ]
        worst = sorted(self.layers, key=_sqnr)[:10]
        columns = ["name", "bits", "entropy", "sqnr_db", "input_low", "input_high", "observer"]
        lines += _table(columns, [[_plain(row[column]) for column in columns] for row in worst])
        lines += _ranking(self.layers)
        lines += ["## Scores", "", "![scores](scores.png)", ""]
        for name, report in self.reports.items():
            if report.samples:
                lines += [f"### Samples of {name}", ""]
                for sample in report.samples:
                    lines += [f"- {key}: {_plain(value)}" for key, value in sample.items()] + [""]
        lines += [f"Configuration hash: `{self.config_hash}`", ""]
        return "\n".join(lines)


def _ranking(layers: Sequence[Mapping[str, object]]) -> list[str]:
    """Which inputs lose most on their grids, where the method has measured that."""
    measured = [row for row in layers if np.isfinite(_input_loss(row))]
    worst = sorted(measured, key=_input_loss, reverse=True)[:10]
    if not worst:
        return []
    columns = ["name", "input_loss", "fallback", "input_low", "input_high"]
    title = "The ten whose inputs lose most by being quantized (Fisher estimate; `fallback`: the input stays float):"
    return [title, "", *_table(columns, [[_plain(row[column]) for column in columns] for row in worst])]


def covered_share(covered: Mapping[str, tuple[int, int]], outline: Outline) -> float:
    """Share of the weights of linears and experts that the covered linears hold."""
    return sum(map(prod, covered.values())) / max(1, sum(map(prod, outline.linears.values())) + outline.experts)


def size_metrics(
    layers: Sequence[Layer],
    covered: Container[str],
    tensors: Mapping[str, Tensor],
    coded: Mapping[str, Parts],
    artifact: Path,
) -> Sizes:
    """Sizes as the results.json keys define them, over the linears that the method covers.

    The table also has the others that a note is about (gates, routers), which no sum counts.

    Compressed bytes hold everything that restores the weights: the coded parts (header, index, tables, checksums)
    and one float32 scale a row; a linear that stayed float counts with the bytes of its float weights.
    """
    rows: list[dict[str, object]] = []
    weights = compressed = linears = kept_float = 0
    entropy_sum = 0.0
    listed = [layer for layer in layers if layer.name in covered or (layer.note and f"{layer.name}.weight" in tensors)]
    for layer in listed:
        count = layer.shape[0] * layer.shape[1]
        row: dict[str, object] = {**asdict(layer), "shape": f"{layer.shape[0]}x{layer.shape[1]}", "weights": count}
        stored = tensors[f"{layer.name}.weight"]
        if layer.quantized:
            scale = next(key for suffix in SCALES if (key := f"{layer.name}.{suffix}") in tensors)
            scales = tensors[scale].numel()
            size = sum(part.nbytes for part in coded[layer.name].values()) + 4 * scales
            row["entropy"] = entropy_bits(stored.numpy())
            entropy_sum += float(row["entropy"]) * count  # type: ignore[arg-type]
        else:
            size, row["entropy"] = stored.numel() * stored.element_size(), float("nan")
        row["bits"] = 8 * size / count
        rows.append(row)
        if layer.name not in covered:
            continue
        linears += 1
        kept_float += layer.fallback or not layer.quantized  # fallback: its input
        weights, compressed = weights + count, compressed + size
    metrics: Metrics = {
        "size/float_bytes": 2 * weights,
        "size/int8_bytes": weights,
        "size/compressed_bytes": compressed,
        "size/bits_per_weight": 8 * compressed / max(1, weights),  # quant=none takes models without linears
        "size/fallback_share": kept_float / max(1, linears),
        "size/artifact_bytes": bundle.size(artifact),
        "compress/ratio": weights / compressed if compressed else 1.0,
    }
    quantized = sum(layer.shape[0] * layer.shape[1] for layer in layers if layer.quantized)
    if quantized:
        metrics["size/entropy_bits"] = entropy_sum / quantized
    return Sizes(metrics, rows)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when there is no such file or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON object atomically."""
    with replacing(path, 0o644) as scratch:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        # the name of a folder may be no UTF-8; what replaces such a byte is JSON's own escape for it
        scratch.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def write_outputs(path: Path, outputs: Mapping[str, Outputs]) -> None:
    """What the quantized model answered, item by item, as `<task>/<array>`: what two runs are paired by."""
    named = {f"{task}/{name}": array for task, arrays in outputs.items() for name, array in arrays.items()}
    with replacing(path, 0o644) as scratch, scratch.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **named)


def read_outputs(path: Path) -> dict[str, Outputs]:
    """Task -> arrays, as `write_outputs` left them; ValueError when the file is missing or damaged."""
    outputs: dict[str, Outputs] = {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            for key, array in stored.items():
                task, _, name = key.rpartition("/")
                outputs.setdefault(task, {})[name] = array
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({str(error).splitlines()[0]}); run it again") from error
    return outputs


def write_layers(path: Path, layers: Sequence[Mapping[str, object]]) -> None:
    """The per-layer table as CSV."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(layers[0] if layers else Layer.__annotations__))
        writer.writeheader()
        writer.writerows(layers)


def not_finite(metrics: Metrics) -> list[str]:
    """Keys of the numbers that are NaN or infinite."""
    return [key for key, value in metrics.items() if not isinstance(value, str) and not np.isfinite(value)]


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
