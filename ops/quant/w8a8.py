"""W8A8: 8-bit weights on a min-max grid, 8-bit static activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import QuantizedWeight, Quantizer, check_finite, round_to_grid


@dataclass(frozen=True)
class W8A8(Quantizer):
    """Symmetric 8-bit weights: step = max|w| / 127 of the row (`per_channel`) or of the tensor."""

    quant_type: ClassVar[str] = "W8A8"

    per_channel: bool = True

    def quantize_weight(self, weight: Tensor) -> QuantizedWeight:
        """Integers in [-127, 127] of a weight [n, k]."""
        weight = check_finite(weight)
        scale = minmax_scale(weight, self.per_channel)
        return QuantizedWeight(round_to_grid(weight, scale), scale)


def minmax_scale(weight: Tensor, per_channel: bool) -> Tensor:
    """Step float32 that maps the largest magnitude to 127: [n, 1] by row, or [1, 1] for the whole tensor.

    A zero row takes the tensor's step; a zero tensor takes 1 / 127.
    """
    largest = weight.abs().amax(dim=1, keepdim=True)
    tensor_largest = largest.amax(dim=0, keepdim=True)
    if not per_channel:
        largest = tensor_largest
    scale = torch.where(largest > 0, largest, tensor_largest) / 127
    return torch.where(scale > 0, scale, torch.full_like(scale, 1 / 127))
