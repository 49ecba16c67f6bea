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
from torch import Tensor

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
    pairs = _pairs(model.config)
    for name, _ in model.named_modules():
        for maker, reader, rows in pairs:
            if f"{name}.{maker}" in shapes and f"{name}.{reader}" in shapes:
                of = rows(shapes[f"{name}.{maker}"][0], shapes[f"{name}.{reader}"][1])
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


def _pairs(config: Any) -> list[tuple[str, str, Callable[[int, int], Tensor]]]:
    """(linear that makes, linear that reads, function of their rows and columns: which row makes each input)."""
    head = getattr(config, "kv_channels", None) or getattr(config, "head_dim", None)
    head = int(head or config.hidden_size // config.num_attention_heads)

    def shared(first: int, rows: int, width: int) -> Tensor:
        """Rows from `first` on, query heads in a row sharing a key head."""
        return torch.arange(first, first + rows).reshape(-1, 1, head).expand(-1, width // rows, head).reshape(-1)

    return [
        ("up_proj", "down_proj", lambda rows, width: torch.arange(width)),  # LLaMA
        ("v_proj", "o_proj", lambda rows, width: shared(0, rows, width)),
        ("dense_h_to_4h", "dense_4h_to_h", lambda rows, width: torch.arange(rows - width, rows)),  # ChatGLM2: gate, up
        # query [width], key and value of one size
        ("query_key_value", "dense", lambda rows, width: shared((rows + width) // 2, (rows - width) // 2, width)),
    ]
