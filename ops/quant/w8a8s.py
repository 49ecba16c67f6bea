"""W8A8S, the seed's co_sparse: int8 storage, a step from the 4-bit range of the normal weights, protected outliers.

Nothing is set to zero. The `fraction` of largest magnitudes of the tensor are outliers; the step of a row maps its
largest *normal* magnitude to 7, and outliers use the same step up to +-127. The integers are then narrowly peaked
(about 3.5 bits of entropy), an int8 matrix unit runs them unchanged, and a lossless coder stores them in half a byte.
Source: msModelSlim's sparse quantization, W8A8S (docs/sparse quantization; formulas measured on its output).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slimrun.ops.format.arithmetic import INT8_LEVELS, QuantizedWeight
from slimrun.ops.format.weights import extremes, largest_magnitude, round_to_grid

from .base import NORMAL_LEVELS, StaticQuantizer, check_matrix, gaussian_bits, outliers_from


@dataclass(frozen=True)
class W8A8S(StaticQuantizer):
    """Sparse quantization with a protected `fraction` of outliers, static 8-bit activations."""

    quant_type = "W8A8S"

    fraction: float = 0.011
    per_channel: bool = True

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and the range."""
        super().__post_init__()
        if not 0.01 <= self.fraction <= 0.1:
            raise ValueError(f"fraction={self.fraction} is out of range; allowed: 0.01 to 0.1")

    def expected_bits(self, shape: tuple[int, int]) -> float:
        """The largest normal weight is on 7."""
        return gaussian_bits(outliers_from(self.fraction), NORMAL_LEVELS)

    def quantize_weight(self, weight: Tensor) -> QuantizedWeight:
        """Integers in [-127, 127] of a weight [n, k]."""
        check_matrix(weight)
        scale = sparse_scale(weight, self.fraction, self.per_channel)
        return QuantizedWeight(round_to_grid(weight, scale), scale)


def outlier_threshold(weight: Tensor, fraction: float) -> Tensor:
    """T (scalar float32) above which a weight is an outlier: the floor(fraction * numel)-th largest of |W| (any shape).

    T itself is normal. A tensor too small for one outlier has none.
    """
    return largest_magnitude(weight, max(1, int(fraction * weight.numel())))


def sparse_scale(weight: Tensor, fraction: float, per_channel: bool) -> Tensor:
    """Step float32: [n, 1] with max{|w| <= T} / 7 of each row, or [1, 1] with T / 7 for the whole tensor.

    Where the formula has no answer: a row without normal weights (zeros or outliers only) takes T / 7, or the step
    that keeps its largest weight within +-127 if that is larger; what is still zero takes 1 / 7.
    """
    threshold = outlier_threshold(weight, fraction)
    normal, largest = extremes(weight, float(threshold))
    if not per_channel:
        normal, largest = threshold.reshape(1, 1), largest.amax(dim=0, keepdim=True)
    without_normal = torch.maximum(threshold / NORMAL_LEVELS, largest / INT8_LEVELS)
    scale = torch.where(normal > 0, normal / NORMAL_LEVELS, without_normal)
    return torch.where(scale > 0, scale, torch.full_like(scale, 1 / NORMAL_LEVELS))
