"""Lowbit sparse quantization: the W8A8S format with outliers told apart row by row.

Like `w8a8s` nothing is set to zero: a 4-bit step per row from its normal weights, outliers on the same step. What is
normal is decided inside each row, by share (`fraction`), by spread (`use_sigma`), or everything is
(`open_outlier=False`, a plain 4-bit grid in int8). `do_smooth` first moves the spread of the channels between the
norms and the linears behind them (`smooth.py`).
Source: msModelSlim's lowbit sparse quantization; formulas measured on its output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from slimrun.ops.format.arithmetic import INT8_LEVELS, QuantizedWeight
from slimrun.ops.format.weights import round_to_grid

from .base import (
    NORMAL_LEVELS,
    StaticQuantizer,
    check_finite,
    gaussian_bits,
    largest_of,
    minmax_scale,
    outliers_from,
)


@dataclass(frozen=True)
class Lowbit(StaticQuantizer):
    """Sparse quantization with outliers by row, static 8-bit activations."""

    quant_type = "W8A8S"
    ranks_by: ClassVar[str] = "first_peak"

    fraction: float = 0.011
    per_channel: bool = True
    use_sigma: bool = False
    sigma_factor: float = 3.0
    open_outlier: bool = True
    do_smooth: bool = False

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and the range."""
        super().__post_init__()
        if not 0.01 <= self.fraction <= 0.1:
            raise ValueError(f"fraction={self.fraction} is out of range; allowed: 0.01 to 0.1")
        if not 3.0 <= self.sigma_factor <= 4.0:
            raise ValueError(f"sigma_factor={self.sigma_factor} is out of range; allowed: 3.0 to 4.0")

    @property
    def smooths_norms(self) -> bool:
        """The knob `do_smooth`."""
        return self.do_smooth

    @property
    def levels(self) -> int:
        """The whole range, for outliers; or that of 4 bits."""
        return INT8_LEVELS if self.open_outlier else NORMAL_LEVELS

    def expected_bits(self, shape: tuple[int, int]) -> float:
        """The largest normal weight is on 7; what is normal depends on the knobs."""
        if not self.open_outlier:
            return gaussian_bits(largest_of(shape[1] if self.per_channel else math.prod(shape)), NORMAL_LEVELS)
        deviation = math.sqrt(1 - 2 / math.pi)  # of the magnitudes
        reach = self.sigma_factor * deviation if self.use_sigma else outliers_from(self.fraction)
        return gaussian_bits(reach, NORMAL_LEVELS)

    def quantize_weight(self, weight: Tensor) -> QuantizedWeight:
        """Integers of a weight [n, k]: in [-128, 127], or in [-7, 7] without outliers."""
        weight = check_finite(weight)
        if not self.open_outlier:
            scale = minmax_scale(weight, self.per_channel, NORMAL_LEVELS)
            return QuantizedWeight(round_to_grid(weight, scale, -NORMAL_LEVELS, NORMAL_LEVELS), scale)
        magnitude = weight.abs()
        if self.use_sigma:
            normal = largest_within_sigma(magnitude, self.sigma_factor)
        else:
            normal = row_threshold(magnitude, self.fraction)
        scale = lowbit_scale(magnitude, normal, self.per_channel)
        return QuantizedWeight(round_to_grid(weight, scale, -128, 127), scale)


def row_threshold(magnitude: Tensor, fraction: float) -> Tensor:
    """[n, 1]: the floor(fraction * k)-th largest of each row of |W| [n, k]; it is normal, what lies above is not.

    A row too short for one outlier has none.
    """
    count = max(1, int(fraction * magnitude.shape[1]))
    return magnitude.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)


def largest_within_sigma(magnitude: Tensor, factor: float) -> Tensor:
    """[n, 1]: the largest of each row of |W| [n, k] that is at most factor * std(|W|) (unbiased, mean not added).

    So 3.0 protects about 7 % of gaussian weights: the deviation is that of the magnitudes.
    """
    if magnitude.shape[1] == 1:
        return magnitude  # one weight has no deviation
    limit = factor * magnitude.std(dim=1, keepdim=True)
    return magnitude.masked_fill(magnitude > limit, 0).amax(dim=1, keepdim=True)


def lowbit_scale(magnitude: Tensor, normal: Tensor, per_channel: bool) -> Tensor:
    """Step float32 that maps the largest normal magnitude [n, 1] to 7: [n, 1], or [1, 1] with that of all rows.

    Where the formula has no answer (zero row, row without normal weights) the step keeps the row's largest weight
    within 127; what is still zero takes the largest step of the tensor, or 1 / 7.
    """
    largest = magnitude.amax(dim=1, keepdim=True)
    if not per_channel:
        normal, largest = normal.amax(dim=0, keepdim=True), largest.amax(dim=0, keepdim=True)
    scale = torch.where(normal > 0, normal / NORMAL_LEVELS, largest / INT8_LEVELS)
    scale = torch.where(scale > 0, scale, scale.amax())
    return torch.where(scale > 0, scale, torch.full_like(scale, 1 / NORMAL_LEVELS))
