"""What a run found: sizes, scores, the per-layer table."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path

import numpy as np
from torch import Tensor

from slimrun.evaluation.comparison import Report, Score
from slimrun.evaluation.gate import Decision
from slimrun.ops import bundle
from slimrun.ops.calibration.base import Layer
from slimrun.ops.compress import entropy_bits
from slimrun.ops.compress.base import Parts
from slimrun.ops.export import Exported
from slimrun.ops.memory import release
from slimrun.ops.model.base import Outline
from slimrun.runner.folder import Sides

Metrics = dict[str, float | int | str]


SCALES = ("deq_scale", "weight_scale")  # either has one number a row, which counts once


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
    outputs: Mapping[str, Sides]  # by task, what its comparison is made of
    weight_file: Path
    warnings: list[str] = field(default_factory=list)
    exports: list[Exported] = field(default_factory=list)
    gate: Decision | None = None

    @property
    def scores(self) -> list[Score]:
        """The rows of all tasks."""
        return [score for report in self.reports.values() for score in report.scores]


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

    The table also has the others that a note is about (gates, routers, quantized embeddings), which no sum counts.
    Compressed bytes hold everything that restores the weights: the coded parts (header, index, tables, checksums) and
    one float32 scale a row; a linear that stayed float counts with the bytes of its float weights.
    """
    rows: list[dict[str, object]] = []
    weights = compressed = linears = in_float = 0
    entropy_sum, quantized = 0.0, 0
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
            release([stored])
        else:
            size, row["entropy"] = stored.numel() * stored.element_size(), float("nan")
        row["bits"] = 8 * size / count
        rows.append(row)
        if layer.name not in covered:
            continue
        linears += 1
        if layer.quantized:
            entropy_sum += float(row["entropy"]) * count  # type: ignore[arg-type]
            quantized += count
        in_float += layer.float_inputs or not layer.quantized
        weights, compressed = weights + count, compressed + size
    metrics: Metrics = {
        "size/float_bytes": 2 * weights,
        "size/int8_bytes": weights,
        "size/compressed_bytes": compressed,
        "size/bits_per_weight": 8 * compressed / max(1, weights),  # quant=none takes models without linears
        "size/fallback_share": in_float / max(1, linears),
        **dict.fromkeys(("size/artifact_bytes", "size/file_bytes"), bundle.size(artifact)),
        "compress/ratio": weights / compressed if compressed else 1.0,
        **({"size/entropy_bits": entropy_sum / quantized} if quantized else {}),
    }
    return Sizes(metrics, rows)


def not_finite(metrics: Metrics) -> list[str]:
    """Keys of the numbers that are NaN or infinite."""
    return [key for key, value in metrics.items() if not isinstance(value, str) and not np.isfinite(value)]
