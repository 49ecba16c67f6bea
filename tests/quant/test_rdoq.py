"""The ingredients of rate-distortion optimized quantization, each against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ops.quant import rdoq
from ops.quant.base import round_to_grid
from ops.quant.lowbit import Lowbit
from ops.quant.rdoq import (
    RDOQ,
    SHRINKAGE,
    Importance,
    code_lengths,
    feedback,
    guarded,
    importance,
    row_steps,
    smoothing_scale,
    weighted_error,
)
from ops.quant.w8a8 import W8A8

FLAT = torch.zeros(256)


def problem(seed: int, n: int, k: int, tokens: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [n, k], the second moment of correlated inputs with a few loud channels, the importance of rows."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, k, generator=generator) @ torch.randn(k, k, generator=generator) / k**0.5
    mixed[:, :2] *= 10
    weight = torch.randn(n, k, generator=generator) * 0.05
    return weight, mixed.t() @ mixed / tokens, torch.rand(n, generator=generator) + 0.1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), k=st.integers(2, 300), step=st.floats(0.005, 0.08))
def test_feedback_never_costs_more_than_plain_rounding(seed: int, n: int, k: int, step: float) -> None:
    weight, hessian, rows = problem(seed, n, k)
    known = importance(hessian, rows, 0.01)
    steps = guarded(torch.full((n, 1), step), weight)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(k) + SHRINKAGE * torch.diag(hessian.diagonal())
    values = feedback(weight, steps, known, FLAT, 0.0, 1.0)
    plain = round_to_grid(weight, steps)
    assert int(values.abs().max()) <= 127
    assert weighted_error(weight, values, steps, damped, rows) <= 1.001 * weighted_error(
        weight, plain, steps, damped, rows
    )


def test_feedback_gains_much_where_inputs_are_correlated() -> None:
    weight, hessian, rows = problem(0, 64, 200, tokens=80)
    known, steps = importance(hessian, rows, 0.01), torch.full((64, 1), 0.04)
    values = feedback(weight, steps, known, FLAT, 0.0, 1.0)
    plain = weighted_error(weight, round_to_grid(weight, steps), steps, hessian, rows)
    assert weighted_error(weight, values, steps, hessian, rows) < 0.3 * plain


def test_uncorrelated_inputs_leave_plain_rounding() -> None:
    weight, _, rows = problem(1, 16, 50)
    known, steps = importance(torch.eye(50), rows, 0.01), torch.full((16, 1), 0.03)
    values = feedback(weight, steps, known, FLAT, 0.0, 1.0)
    assert torch.equal(values, round_to_grid(weight, steps))


@pytest.mark.parametrize("k", [7, 128, 129, 300])
def test_kernel_and_torch_round_alike(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian, rows = problem(2, 70, k)
    known, steps = importance(hessian, rows, 0.01), torch.full((70, 1), 0.03)
    bits = code_lengths(round_to_grid(weight, steps))
    found = feedback(weight, steps, known, bits, 1.0, 0.1)
    monkeypatch.setattr(rdoq, "on_host", lambda tensor: False)
    expected = feedback(weight, steps, known, bits, 1.0, 0.1)
    assert float((found == expected).float().mean()) > 0.999  # sums in another order decide a few ties otherwise


def test_a_price_buys_shorter_codes() -> None:
    weight, hessian, rows = problem(3, 64, 200)
    known, steps = importance(hessian, rows, 0.01), torch.full((64, 1), 0.03)
    bits = code_lengths(round_to_grid(weight, steps))
    level = float((known.slope.sqrt() * 0.03).mean())
    sizes = [
        float(bits[feedback(weight, steps, known, bits, price, level).long() + 128].mean()) for price in (0.0, 0.5, 1.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_steps_lose_alike_for_a_bit_and_keep_the_largest_weight_on_the_grid() -> None:
    weight = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    weight[4, 0] = 1000.0
    slope = torch.tensor([1.0, 4.0, 16.0, 0.0, 1.0])
    steps = row_steps(slope, weight, 0.5)
    torch.testing.assert_close(steps[:4, 0], torch.tensor([0.5, 0.25, 0.125, 0.5]))
    assert float(steps[4]) == pytest.approx(1000 / 126.5)
    assert int(round_to_grid(weight, steps).abs().max()) <= 127


def test_moments_without_rank_and_dead_inputs_are_factored() -> None:
    vector = torch.randn(40, generator=torch.Generator().manual_seed(0))
    for hessian in (torch.outer(vector, vector), torch.zeros(40, 40), torch.diag((torch.arange(40) > 30).float())):
        known = importance(hessian, torch.ones(3), 0.01)
        assert bool(torch.isfinite(known.factor).all())
        assert isinstance(known, Importance)
    with pytest.raises(ValueError, match="second moment of the inputs holds NaN"):
        importance(torch.full((3, 3), float("nan")), torch.ones(3), 0.01)


def test_code_lengths_are_those_of_the_counts() -> None:
    values = torch.tensor([0] * 8 + [1] * 4 + [-1] * 4, dtype=torch.int8)
    lengths = code_lengths(values)
    expected = -np.log2(np.array([9, 5, 5, 1]) / (16 + 256))
    np.testing.assert_allclose(lengths[[128, 129, 127, 0]], expected, rtol=1e-6)


def test_smoothing_scale_has_mean_one_and_evens_out() -> None:
    reach = torch.tensor([1.0, 100.0, 1.0, 1.0])
    scale = smoothing_scale(reach, torch.ones(4), 1.0)
    assert float(scale.log().mean()) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(reach / scale, torch.full((4,), float((reach / scale)[0])))


def test_knobs_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"target_bits=0.5 is out of range; allowed: 1.5 to 7.0"):
        RDOQ(target_bits=0.5)
    with pytest.raises(ValueError, match=r"fallback_level=3 ranks by tails; allowed: 0"):
        RDOQ(fallback_level=3)
    with pytest.raises(ValueError, match=r"target_bits and grid both say how large the result may be; allowed: one"):
        RDOQ(target_bits=3.5, grid=W8A8())
    with pytest.raises(ValueError, match=r"grid.do_smooth=True has no effect"):
        RDOQ(grid=Lowbit(do_smooth=True))
    with pytest.raises(ValueError, match=r"activations=int4 is not known; allowed: int8, float"):
        RDOQ(activations="int4")
    with pytest.raises(ValueError, match=r"observer=auto needs tails"):
        RDOQ(observer="auto")
