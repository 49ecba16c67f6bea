"""The deployed integer arithmetic: exact products, input grids, bias and scale folding."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slimrun.ops import _native
from slimrun.ops.format import arithmetic
from slimrun.ops.format.arithmetic import (
    ActivationGrid,
    QuantizedWeight,
    activation_grid,
    dequantization,
    dequantize,
    dynamic_linear,
    exact_matmul,
    has_int8_product,
    int8_linear,
    int8_matmul,
    own_matmul,
    quantize_activation,
    reciprocal_miss,
    with_reciprocal,
)


def portable_matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = torch.empty(len(x), len(weight), dtype=torch.int32)
    _native.multiply_into(x.numpy(), weight.numpy(), out.numpy(), threads=1, portable=True)
    return out


PRODUCTS = [int8_matmul, own_matmul, portable_matmul, exact_matmul]


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 70) | st.integers(750, 1600), st.integers(1, 30), st.integers(0, 2**31))
def test_integer_products_are_exact(rows: int, depth: int, out: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-128, 128, (rows, depth), dtype=torch.int8, generator=generator)
    weight = torch.randint(-127, 128, (out, depth), dtype=torch.int8, generator=generator)
    expected = (x.to(torch.int64) @ weight.to(torch.int64).t()).to(torch.int32)
    for product in PRODUCTS:
        assert torch.equal(product(x, weight), expected)


@settings(max_examples=60)
@given(
    st.integers(8, 40),
    st.sampled_from([1, 31, 32, 33, 127, 128, 300, 768, 769, 1600]),
    st.lists(st.sampled_from([0, 1, 16, 17, 32, 33, 64, 65, 127, 128]), min_size=1, max_size=9),
    st.integers(0, 2**31),
)
def test_products_of_rows_of_small_weights_are_exact_at_their_extremes(
    rows: int, depth: int, limits: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.tensor([-128, 127, 0], dtype=torch.int8)[torch.randint(0, 3, (rows, depth), generator=generator)]
    signs = torch.randint(-1, 2, (len(limits), depth), generator=generator)
    weight = (signs * torch.tensor(limits)[:, None]).clamp(max=127).to(torch.int8)
    x[0], weight[0] = 127, min(limits[0], 127)  # nothing cancels
    assert torch.equal(own_matmul(x, weight), exact_matmul(x, weight))


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 20), st.sampled_from([3, 127]), st.integers(0, 2**31))
def test_linears_in_one_pass_give_the_bits_of_their_steps(
    rows: int, depth: int, out: int, limit: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, rows, depth, generator=generator) * 10 ** torch.randn(1, rows, 1, generator=generator)
    x[0, 0] *= 0
    weight = torch.randint(-limit, limit + 1, (out, depth), dtype=torch.int8, generator=generator)
    quant_bias = torch.randint(-(2**31), 2**31 - 1, (out,), dtype=torch.int32, generator=generator)
    grid, bias = ActivationGrid(0.037, 11), torch.randn(out, generator=generator)
    for steps in (torch.rand(out, generator=generator), torch.rand(1, generator=generator)):
        works = [
            lambda s=steps: int8_linear(x, weight, grid, quant_bias, s),
            lambda s=steps: dynamic_linear(x, weight, s, bias),
            lambda s=steps: dynamic_linear(x.bfloat16(), weight, s[:, None], None),
        ]
        for work in works:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(arithmetic, "one_pass", lambda _: True)
                whole = work()
                patch.setattr(arithmetic, "one_pass", lambda _: False)
                assert torch.equal(whole, work())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("one_pass", [True, False])
def test_a_token_that_is_no_number_stays_none(value: float, one_pass: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "one_pass", lambda _: one_pass)
    x = torch.ones(9, 40)
    x[3, 7] = value
    out = dynamic_linear(x, torch.ones(5, 40, dtype=torch.int8), torch.ones(5), None)
    assert out.isfinite().all(dim=1).tolist() == [row != 3 for row in range(9)]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_large_product_by_any_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (67, 1000), dtype=torch.int8, generator=generator)
    weight = torch.randint(-128, 128, (1001, 700), dtype=torch.int8, generator=generator).repeat(1, 2)[:, 200:1200]
    assert torch.equal(own_matmul(x, weight), exact_matmul(x, weight))


def test_a_product_that_saturates_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return exact_matmul(x, weight.t()).clamp(-32768, 32767)

    has_int8_product.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", saturating)
    x = torch.full((2, 64), 127, dtype=torch.int8)
    try:
        assert int8_matmul(x, x).unique().tolist() == [127 * 127 * 64]
    finally:
        has_int8_product.cache_clear()


def test_a_product_slower_than_our_own_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def detour(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # what oneDNN's is without VNNI
        time.sleep(0.05)
        return exact_matmul(x, weight.t())

    has_int8_product.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", detour)
    try:
        assert not has_int8_product("cpu")
    finally:
        has_int8_product.cache_clear()


def test_products_stay_exact_at_the_extremes_of_a_deep_matrix() -> None:
    x = torch.full((2, 14000), -128, dtype=torch.int8)
    weight = torch.full((3, 14000), 127, dtype=torch.int8)
    for product in PRODUCTS:
        assert product(x, weight).unique().tolist() == [-128 * 127 * 14000]


@pytest.mark.parametrize(
    ("low", "high", "scale", "offset"),
    [(-1.0, 1.55, 0.01, -28), (0.0, 2.55, 0.01, -128), (-2.55, -1.0, 0.01, 127), (0.0, 0.0, 1.1920929e-07, -128)],
)
def test_activation_grid_golden(low: float, high: float, scale: float, offset: int) -> None:
    grid = activation_grid(low, high, torch.float32)
    assert grid.scale == pytest.approx(scale, rel=1e-6)
    assert grid.offset == offset


@settings(max_examples=100)
@given(
    hnp.arrays(np.float32, st.integers(0, 90), elements=st.floats(width=32, allow_nan=False)),
    st.floats(2**-20, 2**13, width=32),
    st.integers(-128, 127),
)
def test_quantization_in_one_pass_equals_the_formula(values: np.ndarray, scale: float, offset: int) -> None:
    x, grid = torch.from_numpy(values), ActivationGrid(scale, offset)
    expected = (x / scale).round().add(offset).clamp(-128, 127).to(torch.int8)
    assert torch.equal(quantize_activation(x, grid), expected)
    ties = (torch.arange(-300, 300) + 0.5) * 0.25
    halves = ActivationGrid(0.25, offset)
    assert torch.equal(
        quantize_activation(ties, halves), (ties / 0.25).round().add(offset).clamp(-128, 127).to(torch.int8)
    )


@settings(max_examples=60)
@given(st.integers(0, 5), st.integers(1, 40), st.booleans(), st.integers(0, 2**31))
def test_dequantization_in_one_pass_equals_the_formula(rows: int, columns: int, one: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    total = torch.randint(-(2**30), 2**30, (rows, columns), dtype=torch.int32, generator=generator)
    bias = torch.randint(-(2**30), 2**30, (columns,), dtype=torch.int32, generator=generator)
    scale = torch.rand(1 if one else columns, generator=generator)
    assert torch.equal(dequantize(total, bias, scale), (total + bias).float() * scale)


@pytest.mark.parametrize(("rows", "columns"), [(1, 200_003), (701, 577), (3, 131_071)])
def test_large_ones_are_made_in_parts(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, grid = torch.randn(rows, columns, generator=generator), ActivationGrid(0.02, 3)
    expected = (x / grid.scale).round().add(grid.offset).clamp(-128, 127).to(torch.int8)
    assert torch.equal(quantize_activation(x, grid), expected)
    total = torch.randint(-(2**30), 2**30, (rows, columns), dtype=torch.int32, generator=generator)
    bias = torch.randint(-(2**30), 2**30, (columns,), dtype=torch.int32, generator=generator)
    scale = torch.rand(columns, generator=generator)
    assert torch.equal(dequantize(total, bias, scale), (total + bias).float() * scale)


def test_kernels_refuse_shapes_that_do_not_fit() -> None:
    total, bias, scale = torch.zeros(2, 3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32), torch.ones(3)
    for arguments, message in (((total, bias[:2], scale), "bias"), ((total, bias, scale[:2]), "scale")):
        with pytest.raises(ValueError, match=message):
            dequantize(*arguments)


def test_scale_is_the_number_that_the_models_dtype_can_store() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        grid = activation_grid(-1.0, 2.0, dtype)
        assert grid.scale == float(torch.tensor(grid.scale, dtype=dtype)) != 3 / 255


def test_float16_models_keep_deq_scale_in_float32() -> None:
    weight = QuantizedWeight(torch.ones(1, 4, dtype=torch.int8), torch.tensor([[1.2345e-4]]))
    deq_scale, _ = dequantization(weight, None, ActivationGrid(float(torch.tensor(3.1e-4, dtype=torch.float16)), 0))
    assert deq_scale.dtype == torch.float32
    # the product in float16 would be the subnormal 5.96e-08, 56 % off
    assert float(deq_scale) == pytest.approx(1.2345e-4 * 3.1e-4, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_integer_and_fake_quantized_forward_agree_to_rounding(dtype: torch.dtype, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    x = (torch.randn(3, 7, 96, generator=generator) * 2 + 0.5).to(dtype)
    values = torch.randint(-127, 128, (40, 96), dtype=torch.int8, generator=generator)
    weight = QuantizedWeight(values, torch.rand(40, 1, generator=generator) * 0.01 + 1e-3)
    bias = torch.randn(40, generator=generator) if with_bias else None
    grid = activation_grid(float(x.min()), float(x.max()) * 0.8, dtype)  # a part of x clips
    deq_scale, quant_bias = dequantization(weight, bias, grid)

    deployed = int8_linear(x, values, grid, quant_bias, deq_scale)
    fake_input = (quantize_activation(x, grid).double() - grid.offset) * grid.scale
    fake = torch.nn.functional.linear(fake_input, values.double() * weight.scale.double())
    fake = fake if bias is None else fake + bias.double()

    assert deployed.dtype == dtype
    assert deployed.shape == (3, 7, 40)
    # the bias is rounded to a multiple of deq_scale: half a step; the rest is the output dtype's rounding
    allowed = 0.5 * deq_scale.double() + fake.abs() * torch.finfo(dtype).eps + 1e-6
    assert ((deployed.double() - fake).abs() <= allowed).all()


@pytest.mark.parametrize(("dtype", "least", "as_it_is"), [(torch.float16, 0.002, 0.05), (torch.bfloat16, 0.07, 0.4)])
def test_scales_stand_for_their_reciprocals(dtype: torch.dtype, least: float, as_it_is: float) -> None:
    scales = (2.0**-6 * torch.arange(1, 2, torch.finfo(dtype).eps)).to(dtype)
    chosen = torch.stack([with_reciprocal(scale) for scale in scales])
    assert float(reciprocal_miss(scales).max()) > as_it_is
    assert float(reciprocal_miss(chosen).max()) < least
    assert bool((chosen >= scales).all())
    assert float((chosen.float() / scales.float()).max()) <= 1.05
    assert float((chosen.float() / scales.float()).mean()) < 1.025


def test_a_device_that_multiplies_finds_the_same_integers() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).half().float()
    differ = {}
    for chosen in (False, True):
        grid = activation_grid(-3.7, 4.1, torch.float16, reciprocal_scale=chosen)
        reciprocal = (1 / torch.tensor(grid.scale)).half().float()
        theirs = ((x * reciprocal).round() + grid.offset).clamp(-128, 127)
        differ[chosen] = int((theirs != quantize_activation(x, grid).float()).sum())
        low, high = (-128 - grid.offset) * grid.scale, (127 - grid.offset) * grid.scale
        assert low <= -3.7 + grid.scale
        assert high >= 4.1 - grid.scale
    assert differ[False] > 10 * differ[True]


def test_a_float32_scale_needs_no_other() -> None:
    assert activation_grid(-1, 3, torch.float32, reciprocal_scale=True) == activation_grid(-1, 3, torch.float32)
