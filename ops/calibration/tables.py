"""Embeddings and output head as int8 rows, each with the step that its largest number asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slimrun.ops.format.arithmetic import QuantizedWeight
from slimrun.ops.format.linear import Int8Table, quantized_linear
from slimrun.ops.format.weights import round_to_grid
from slimrun.ops.model.tables import Table
from slimrun.ops.quant.base import check_matrix, minmax_scale

from .base import Layer, Network, Sample, weight_error

LOOKED_UP, MULTIPLIED, BOTH = "embeddings", "output head", "embeddings and output head in one"


def quantize_tables(
    network: Network, layers: dict[str, Layer], samples: Sequence[Sample], dtype: torch.dtype | None
) -> list[str]:
    """Replace embeddings and output head by their integers, with a row of `layers` each; notes on what stays float.

    `dtype` is the one in which steps are stored, None for each table's own.
    """
    tables, notes = float_tables(network, layers, samples)
    for table in tables:
        with network.linear(table.name) as (weight, _), network.linear(table.places[-1]) as (_, bias):
            stored = dtype or weight.dtype
            rows = rounded_rows(weight, stored)
            note_table(layers[table.name], table, weight, rows)
        network.replace_table(table, quantized_linear(Int8Table.quant_type, rows, bias, stored))
    return notes


def float_tables(
    network: Network, layers: dict[str, Layer], samples: Sequence[Sample]
) -> tuple[list[Table], list[str]]:
    """The tables that can be quantized, with a row of `layers` for each of all; notes on those that stay float."""
    tables = network.tables(samples[0] if samples else None)
    for table in tables:
        layer = layers.setdefault(table.name, Layer(table.name, table.shape, quantized=False))
        if table.kept:
            layer.note = f"kept float, because {table.kept}"
    notes = [f"{table.name} stays float, because {table.kept}" for table in tables if table.kept]
    if not tables:
        notes.append("embeddings stay float, because the model does not say which they are")
    return [table for table in tables if not table.kept], notes


def note_table(layer: Layer, table: Table, weight: Tensor, rows: QuantizedWeight) -> None:
    """What became of a table [V, H], in its row."""
    layer.quantized, layer.format = True, Int8Table.quant_type
    layer.sqnr_db, layer.clipped = weight_error(weight, rows)
    layer.note = BOTH if len(table.places) > 1 else LOOKED_UP if table.looked_up else MULTIPLIED


def rounded_rows(weight: Tensor, dtype: torch.dtype) -> QuantizedWeight:
    """int8 rows of a table [V, H] with steps [V, 1] that are numbers of `dtype`, in float32."""
    check_matrix(weight)
    step = minmax_scale(weight, per_channel=True).to(dtype).clamp_min(torch.finfo(dtype).tiny).to(torch.float32)
    return QuantizedWeight(round_to_grid(weight, step), step)
