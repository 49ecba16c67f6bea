"""Embeddings and output layer of a MindSpore LLaMA: which cells they are, and how quantized ones stand in for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from mindspore import nn

from slimrun.ops.format.linear import Int8Table, QuantizedLinear
from slimrun.ops.framework.mindspore.llama import Llama
from slimrun.ops.model.tables import Table

from .cells import cell_of, put
from .int8_cell import quantized_cell

EMBEDDINGS, HEAD = "model.embed_tokens", "lm_head"


def tables(network: nn.Cell) -> list[Table]:
    """Embeddings and output layer, one table where they are tied; none of a network that is not built here."""
    if not isinstance(network, Llama):
        return []
    rows, columns = cell_of(network, EMBEDDINGS).weight.shape
    if network.config.tie_word_embeddings:
        return [Table((EMBEDDINGS, HEAD), (rows, columns))]
    return [Table((name,), (rows, columns), looked_up=name == EMBEDDINGS) for name in (EMBEDDINGS, HEAD)]


def put_table(network: nn.Cell, table: Table, quantized: QuantizedLinear) -> None:
    """Put a quantized table in all places of the float one."""
    cell = quantized_cell(table.name, quantized)
    for place in table.places:
        put(network, place, cell)


def stored_tables(network: nn.Cell, types: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> list[Table]:
    """Those that are stored quantized; an output layer with tensors of its own is no part of the embeddings."""
    stored = []
    for table in tables(network):
        if types.get(table.name) == Int8Table.quant_type:
            apart = [place for place in table.places[1:] if f"{place}.weight" in tensors]
            stored.append(replace(table, places=tuple(place for place in table.places if place not in apart)))
    return stored
