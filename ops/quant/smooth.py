"""Smoothing: move the spread of the channels from activations into the weights behind a norm.

The linears behind a norm see its outputs X [m, c]. With a shift and a scale per channel

    W X + b = (W * s) ((X - shift) / s) + (b + W shift)

holds exactly, so the norm can give (X - shift) / s (weight / s, bias - shift / s) and the linears take the rest.
Channels with large activations and small weights become equal, and both quantize better on one grid.
Source: SmoothQuant (Xiao et al. 2023) with the shift of Outlier Suppression+ (Wei et al. 2023), as in msModelSlim's
lowbit do_smooth; here the extremes come from all calibration batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Quantizer

ALPHAS = tuple(step / 10 for step in range(1, 10))
SAMPLE_ROWS = 256  # rows of the weights that the search looks at


@dataclass(frozen=True)
class Smoothing:
    """(X - shift) / scale goes through the norm; alpha says how it was found (nan: nothing is gained, identity)."""

    shift: Tensor  # float32 [c]
    scale: Tensor  # float32 [c]
    alpha: float


def smoothing_scale(reach: Tensor, weight_reach: Tensor, alpha: float) -> Tensor:
    """[c]: reach^alpha / weight_reach^(1 - alpha), 1 where a channel is constant or has no weights.

    reach is max|X - shift| of a channel, weight_reach the largest |W| of all linears that read it. Source: SmoothQuant
    (Xiao et al. 2023).
    """
    scale = reach.pow(alpha) / weight_reach.pow(1 - alpha)
    return torch.where((reach > 0) & (weight_reach > 0) & torch.isfinite(scale), scale, torch.ones_like(scale))


def find_smoothing(
    inputs: Tensor,
    low: Tensor,
    high: Tensor,
    weights: Sequence[Tensor],
    quantizer: Quantizer,
    *,
    shifts: bool = True,
) -> Smoothing:
    """The smoothing whose quantized linears are nearest to the float ones, or the identity when none helps.

    inputs [m, c] are some outputs of the norm, low and high [c] their extremes over all calibration batches, weights
    [n_i, c] the linears that read them. The error is taken on rows spread evenly over all weights, with weights and
    activations quantized. `shifts`: whether the middle of each channel is moved to zero too.
    """
    inputs, low, high = (value.detach().to(torch.float32) for value in (inputs, low, high))
    rows = torch.cat([weight.detach() for weight in weights])
    weight_reach = torch.stack([weight.detach().abs().amax(dim=0) for weight in weights]).amax(dim=0).float()
    rows = rows[:: -(-rows.shape[0] // SAMPLE_ROWS)].to(torch.float32)
    shift = (high + low) / 2 if shifts else torch.zeros_like(low)
    reach = torch.maximum(high - shift, shift - low)
    exact = inputs @ rows.t()
    identity = Smoothing(torch.zeros_like(shift), torch.ones_like(shift), float("nan"))
    candidates = [identity, *(Smoothing(shift, smoothing_scale(reach, weight_reach, alpha), alpha) for alpha in ALPHAS)]

    def error(candidate: Smoothing) -> float:
        smoothed = (inputs - candidate.shift) / candidate.scale
        lowest = float(((low - candidate.shift) / candidate.scale).min())
        highest = float(((high - candidate.shift) / candidate.scale).max())
        seen = quantizer.round_inputs(smoothed, lowest, highest)
        weight = quantizer.quantize_weight(rows * candidate.scale)
        out = seen @ (weight.values * weight.scale).t() + rows @ candidate.shift
        return float((out - exact).square().mean())

    return min(candidates, key=error)
