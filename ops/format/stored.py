"""Steps and grids as the files hold them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .arithmetic import ActivationGrid, QuantizedWeight


def stored_grid(scale: Tensor, offset: Tensor) -> ActivationGrid:
    """The grid of its two stored numbers; ValueError when they are none."""
    if scale.numel() != 1 or offset.numel() != 1:
        raise ValueError(f"has {scale.numel()} input_scale and {offset.numel()} input_offset, expected one of each")
    step, zero = float(scale), float(offset)
    if not (0 < step < math.inf and -128 <= zero <= 127 and zero.is_integer()):
        raise ValueError(f"has the input_scale {step:g} and the input_offset {zero:g}, which are no grid of int8")
    return ActivationGrid(step, int(zero))


def stored_scale(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """The step as the files hold it: [n, 1], or [1] for one a tensor, in the model's dtype."""
    scale = weight.scale if weight.scale.numel() > 1 or weight.values.shape[0] == 1 else weight.scale.reshape(1)
    return scale.to(dtype)


def scale_tensors(scale: Tensor) -> dict[str, Tensor]:
    """weight_scale and the zero weight_offset of a symmetric grid."""
    return {"weight_scale": scale, "weight_offset": torch.zeros_like(scale)}
