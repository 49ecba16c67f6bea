"""Scales of a linear's inputs that the model before it can take: norms, and linears whose rows make the inputs.

Dividing the inputs of a linear by a scale and multiplying its columns with it changes nothing, if what makes the
inputs is divided: the weight of a norm, or rows of another linear with nothing but products and sums between. Such are
value -> output of attention (query heads that share a key head share the scale) and up -> down of a gated MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ops.framework.smoothing import TOLERANCE, Observations

from .network import TorchNetwork, linear_names


@dataclass(frozen=True)
class Fold:
    """The linears that read one input [k], and the module that takes the scale: its weight's entry or row `of[i]`."""

    readers: tuple[str, ...]
    producer: str
    of: Tensor  # int64 [k]

    def per_producer(self, values: Tensor) -> Tensor:
        """The largest of values [k] of all inputs that an entry or row makes, for each input [k]."""
        largest = torch.full((int(self.of.max()) + 1,), -torch.inf).scatter_reduce(0, self.of, values, "amax")
        return largest[self.of]


def find_folds(network: TorchNetwork, runs: Sequence[Callable[[], Any]]) -> list[Fold]:
    """Every fold of the model; `runs` run it once for each of some samples."""
    seen = Observations(len(runs))
    with network.observing(seen):
        for run in runs:
            run()
            seen.end_run()
    model = network.model
    folds = [
        Fold(tuple(norm.readers), name, torch.arange(norm.low.numel()))
        for name, norm in seen.norms.items()
        if norm.readers
    ]
    shapes = linear_names(model)
    for name, module in model.named_modules():
        for maker, reader, rows in _pairs(module):
            if f"{name}.{maker}" in shapes and f"{name}.{reader}" in shapes:
                of = rows(module, shapes[f"{name}.{maker}"][0], shapes[f"{name}.{reader}"][1])
                folds.append(Fold((f"{name}.{reader}",), f"{name}.{maker}", of))
    return folds


@torch.no_grad()
def fold(network: TorchNetwork, folds: Sequence[tuple[Fold, Tensor]], run: Callable[[], Any]) -> None:
    """Divide the inputs of each fold by its scale [k]; ValueError when the model then computes something else."""
    before = network.first_tensor(run()).clone()
    for one, scale in folds:
        producer: Any = network.model.get_submodule(one.producer)
        by_row = torch.ones(producer.weight.shape[0])
        by_row[one.of] = scale
        producer.weight.div_(by_row.reshape(-1, *[1] * (producer.weight.ndim - 1)).to(producer.weight))
        if getattr(producer, "bias", None) is not None:
            producer.bias.div_(by_row.to(producer.bias))
        for reader in one.readers:
            linear: Any = network.model.get_submodule(reader)
            linear.weight.mul_(scale.to(linear.weight))
    after = network.first_tensor(run())
    distance = float((after.float() - before.float()).norm() / before.float().norm())
    if not distance <= TOLERANCE.get(before.dtype, 1e-1):
        raise ValueError(
            f"smooth_alpha: folding scales changes what this model computes by {distance:.1%}; take smooth_alpha=null"
        )


def _pairs(module: nn.Module) -> list[tuple[str, str, Callable[[Any, int, int], Tensor]]]:
    """(linear that makes, linear that reads, which row makes each input) of the attention and MLP classes known."""
    return [
        ("up_proj", "down_proj", lambda _, rows, width: torch.arange(width)),  # LLaMA
        ("v_proj", "o_proj", _heads),
        ("dense_h_to_4h", "dense_4h_to_h", lambda _, rows, width: torch.arange(rows - width, rows)),  # ChatGLM2
        ("query_key_value", "dense", _fused_heads),
    ]


def _heads(attention: Any, rows: int, width: int) -> Tensor:
    """Row of v_proj of each input of o_proj: query heads in a row share a key head."""
    head = int(attention.head_dim)
    repeated = torch.arange(rows).reshape(-1, 1, head).expand(-1, width // rows, head)
    return repeated.reshape(-1)


def _fused_heads(attention: Any, rows: int, width: int) -> Tensor:
    """As `_heads`, the values being the last rows of query_key_value: rows = width + 2 * values."""
    values, head = (rows - width) // 2, int(attention.hidden_size_per_attention_head)
    repeated = torch.arange(rows - values, rows).reshape(-1, 1, head).expand(-1, width // values, head)
    return repeated.reshape(-1)
