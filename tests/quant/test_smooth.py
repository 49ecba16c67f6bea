"""Smoothing: exact in float, chosen by the error of the quantized product."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.smooth import Smoothing, find_smoothing, smoothing_scale

QUANTIZER = Lowbit()


def problem(heavy: float) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 96, generator=generator)
    inputs[:, 5] = inputs[:, 5] * heavy + heavy
    return inputs, [torch.randn(rows, 96, generator=generator) * 0.05 for rows in (40, 300)]


def search(inputs: Tensor, weights: list[Tensor]) -> Smoothing:
    return find_smoothing(inputs, inputs.amin(dim=0), inputs.amax(dim=0), weights, QUANTIZER)


def test_scale_golden() -> None:
    reach, weight_reach = torch.tensor([16.0, 1.0, 0.0, 4.0]), torch.tensor([4.0, 0.25, 1.0, 0.0])
    assert smoothing_scale(reach, weight_reach, 0.5).tolist() == [2.0, 2.0, 1.0, 1.0]
    torch.testing.assert_close(smoothing_scale(reach, weight_reach, 1.0), torch.tensor([16.0, 1.0, 1.0, 1.0]))


def test_a_heavy_channel_is_smoothed_and_the_product_stays() -> None:
    inputs, weights = problem(heavy=60.0)
    smoothing = search(inputs, weights)
    assert not math.isnan(smoothing.alpha)
    smoothed = (inputs - smoothing.shift) / smoothing.scale
    assert smoothed.abs().max() < inputs.abs().max() / 4
    for weight in weights:
        product = smoothed.double() @ (weight * smoothing.scale).double().t() + (weight @ smoothing.shift).double()
        torch.testing.assert_close(product, inputs.double() @ weight.double().t(), rtol=1e-5, atol=1e-4)


def test_nothing_to_gain_is_the_identity() -> None:
    inputs = torch.ones(8, 16)
    smoothing = search(inputs, [torch.full((4, 16), 0.5)])
    assert math.isnan(smoothing.alpha)
    assert torch.equal(smoothing.scale, torch.ones(16))
    assert not smoothing.shift.any()
