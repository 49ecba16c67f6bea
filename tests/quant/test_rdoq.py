"""The ingredients of rate-distortion optimized quantization, each against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slimrun.ops import _native
from slimrun.ops.calibration.rdoq.folding import balanced_scale, centred_scale
from slimrun.ops.format.weights import round_to_grid
from slimrun.ops.quant import feedback as method
from slimrun.ops.quant.feedback import (
    PLAIN_PRICE,
    SHRINKAGE,
    Importance,
    code_lengths,
    column_costs,
    feedback,
    guarded,
    importance,
    row_bits,
    row_steps,
    weighted_error,
)
from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.rdoq import RDOQ, Fallback
from slimrun.ops.quant.w8a8 import W8A8

FLAT = torch.zeros(256)


def problem(seed: int, n: int, k: int, tokens: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [n, k], the second moment of correlated inputs with a few loud channels, the importance of rows."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, k, generator=generator) @ torch.randn(k, k, generator=generator) / k**0.5
    mixed[:, :2] *= 10
    weight = torch.randn(n, k, generator=generator) * 0.05
    return weight, mixed.t() @ mixed / tokens, torch.rand(n, generator=generator) + 0.1


@settings(max_examples=25)
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
def test_blocks_round_as_column_after_column(k: int) -> None:
    weight, hessian, rows = problem(2, 70, k)
    known, steps, price, level = importance(hessian, rows, 0.01), torch.full((70, 1), 0.03), 1.0, 0.1
    bits = code_lengths(round_to_grid(weight, steps))
    in_blocks = feedback(weight, steps, known, bits, price, level)

    rest, columns = weight[:, known.order].clone(), known.columns
    row_price = (level**2 / (known.slope * steps[0] ** 2)).clamp_max(1.0)
    expected = torch.empty(70, k)
    for j in range(k):
        x = rest[:, j] / steps[:, 0]
        candidates = torch.stack([x.floor(), x.floor() + 1]).clamp(-127, 127)
        a_bit = price * PLAIN_PRICE * columns.mean() / columns[j] * row_price
        cost = (x - candidates).square() + a_bit * bits[candidates.long() + 128]
        expected[:, known.order[j]] = level_of = torch.where(cost[1] < cost[0], candidates[1], candidates[0])
        error = (rest[:, j] - level_of * steps[:, 0]) / known.factor[j, j]
        rest -= error.unsqueeze(1) * known.factor[j]
    plain = round_to_grid(weight, steps)
    rows_fed = (in_blocks != plain).any(dim=1)  # where feedback costs more than plain rounding, that is kept
    assert float(rows_fed.float().mean()) > 0.9
    assert float((in_blocks == expected)[rows_fed].float().mean()) > 0.999  # sums in another order decide a few ties


def test_codes_of_a_row_take_what_those_of_its_levels_do() -> None:
    values = torch.arange(-128, 128, dtype=torch.int8).repeat(41)[:10000].reshape(80, 125).flip(0)
    bits = torch.rand(256, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(row_bits(values, bits), bits[values.long() + 128].sum(dim=1))


def test_long_products_may_be_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian, rows = problem(4, 300, 500)
    steps = torch.full((300, 1), 0.03)
    bits, costs = code_lengths(round_to_grid(weight, steps)), []
    for wide in (512, 128):
        monkeypatch.setattr(method, "WIDE", wide)
        monkeypatch.setattr(method, "ROWS", wide)
        known = importance(hessian, rows, 0.1)
        torch.testing.assert_close(known.factor @ known.factor.inverse(), torch.eye(500), atol=1e-3, rtol=0)
        torch.testing.assert_close(column_costs(hessian, 0.1)[known.order], known.columns)
        values = feedback(weight, steps, known, bits, 0.3)
        costs.append(weighted_error(weight, values, steps, hessian, rows))
    plain = weighted_error(weight, round_to_grid(weight, steps), steps, hessian, rows)
    assert costs[1] == pytest.approx(costs[0], rel=0.005)
    assert costs[0] < 0.8 * plain


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


def test_a_centred_scale_has_mean_one_and_evens_out() -> None:
    reach = torch.tensor([1.0, 100.0, 1.0, 1.0])
    scale = centred_scale(reach, torch.ones(4), 1.0)
    assert float(scale.log().mean()) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(reach / scale, torch.full((4,), float((reach / scale)[0])))


def test_balanced_scale_weighs_rounding_against_the_input_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    columns, reach = torch.rand(50, generator=generator) + 0.1, torch.rand(50, generator=generator) + 0.5
    reach[7] = 30.0  # what a few tokens make large
    sensitivity = torch.ones(50)

    def costs(scale: Tensor, noise: float) -> float:
        tempered = columns.sqrt() * columns.mean() / columns.sqrt().mean()
        step = 2 * float((reach / scale).max()) / 255
        return noise * float((tempered / scale**2).sum()) + step**2 / 12 * float((sensitivity * scale**2).sum())

    weights_alone = balanced_scale(reach, columns, sensitivity, 1e9)
    torch.testing.assert_close(weights_alone.log(), columns.log() / 4 - columns.log().mean() / 4, rtol=1e-4, atol=1e-5)
    inputs_alone = balanced_scale(reach, columns, sensitivity, 0.0)
    torch.testing.assert_close(reach / inputs_alone, torch.full((50,), float(reach[0] / inputs_alone[0])))
    both = balanced_scale(reach, columns, sensitivity, 0.01)
    assert costs(both, 0.01) < min(costs(weights_alone, 0.01), costs(inputs_alone, 0.01))
    assert float(both.log().mean()) == pytest.approx(0, abs=1e-6)


def test_knobs_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"target_bits=0.5 is out of range; allowed: 1.5 to 7.0"):
        RDOQ(target_bits=0.5)
    with pytest.raises(ValueError, match=r"max_share=1.5 is out of range; allowed: 0.0 to 1.0"):
        Fallback(1.5)
    with pytest.raises(ValueError, match=r"fallback_level=3 ranks by tails; allowed: 0"):
        RDOQ(fallback_level=3)
    with pytest.raises(ValueError, match=r"target_bits and quant.grid both say how large the result may be"):
        RDOQ(target_bits=3.5, grid=W8A8())
    with pytest.raises(ValueError, match=r"grid.do_smooth=True has no effect"):
        RDOQ(grid=Lowbit(do_smooth=True))
    with pytest.raises(ValueError, match=r"activations=int4 is not known; allowed: int8, float"):
        RDOQ(activations="int4")
    with pytest.raises(ValueError, match=r"steps=slope goes by gradients; allowed with importance=inputs: steps=row"):
        RDOQ(importance="inputs")
    with pytest.raises(ValueError, match=r"steps=column is not known; allowed: slope, row, tensor"):
        RDOQ(steps="column")
    with pytest.raises(ValueError, match=r"observer=auto needs tails"):
        RDOQ(observer="auto")


def test_native_orders_name_each_column_once() -> None:
    levels, taken, out = (
        np.zeros(shape, kind) for shape, kind in (((2, 3), np.int8), (2, np.bool_), ((2, 3), np.int8))
    )
    for order in ([0, 1], [0, 1, 1], [0, 1, 3], [-1, 0, 1]):
        with pytest.raises(ValueError, match="order: must name each column"):
            _native.out_of_order_into(levels, levels, taken, np.array(order, np.int32), out, 1)
    with pytest.raises(ValueError, match="takes: must have the rows"):
        _native.out_of_order_into(levels, levels, taken[:1], np.arange(3, dtype=np.int32), out, 1)
