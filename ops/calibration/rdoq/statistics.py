"""What was measured on the float model, as folding and rounding ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from slimrun.ops.memory import Room

from .moments import unpacked


@dataclass
class Statistics:
    """The Fisher statistics of all linears, and what folding makes of them."""

    first: dict[str, str]  # linear -> the first that reads the same input
    by_part: Sequence[Mapping[str, Any]]  # of `FisherStatistics`; reading one may mean reading a file
    parts: int  # through which gradients can be carried
    room: Room  # where those lie that no file has
    rows: dict[str, Tensor] = field(default_factory=dict)  # linear -> squared gradients of its rows, folded
    scales: dict[str, Tensor] = field(default_factory=dict)  # first -> what its input is divided by

    def __getitem__(self, key: str) -> Tensor:
        """The array of this name; KeyError where no sample came by."""
        for part in self.by_part:
            if key in part:
                return torch.as_tensor(part[key])
        raise KeyError(key)

    def states(self, samples: int) -> list[Tensor]:
        """The float model's last hidden states float32 [T, H] of each sample."""
        return [self[f"states.{number}"] for number in range(samples)]

    def token_weights(self) -> dict[str, Tensor]:
        """Linear -> float32 [tokens of all samples]: a token's share of the mean squared gradient of its outputs."""
        return {name: self[f"{self.first[name]}.weights"] * rows.mean() for name, rows in self.rows.items()}

    def moment(self, first: str) -> Tensor:
        """float32 [k, k] of the folded model's input."""
        packed = self[f"{first}.moment"]
        moment = unpacked(packed, len(self[f"{first}.reach"]))
        self.room.release([packed])
        scale = self.scales.get(first)
        return moment if scale is None else moment.div_(scale).div_(scale.unsqueeze(1))
