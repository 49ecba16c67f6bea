"""Passes over float weights: what the native ones give is what torch gives, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slimrun.ops import _native
from slimrun.ops.format import weights
from slimrun.ops.format.weights import extremes, largest_magnitude, round_to_grid, rounding_errors, row_sums

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Weights of any scale, zeros and subnormal numbers among them, in rows that end within a vector."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 70) | st.sampled_from([2048, 2050, 4100]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numbers = generator.standard_normal((rows, columns)) * 10.0 ** draw(st.integers(-9, 3))
    numbers *= generator.random(numbers.shape) < draw(st.sampled_from([0.01, 0.5, 1.0]))
    if draw(st.booleans()):
        numbers[:, generator.integers(columns)] *= 50
    return torch.from_numpy(numbers.clip(-6e4, 6e4)).to(draw(st.sampled_from(DTYPES)))  # float16 ends at 65504


@pytest.fixture(params=DTYPES, ids=str)
def every_number(request: pytest.FixtureRequest) -> Tensor:
    """All finite numbers of two bytes, and as many float32."""
    dtype = request.param if request.param != torch.float32 else torch.bfloat16
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    return numbers[numbers.float().isfinite()].reshape(4, -1).to(request.param)


def apart(weight: Tensor) -> Tensor:
    """The same numbers where native passes cannot take them."""
    return torch.stack([weight, weight], dim=-1)[..., 0]


def steps_of(weight: Tensor) -> Tensor:
    """Some steps, of which half cut the largest weights."""
    steps = weight.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
    steps[::2] /= 3
    return steps


def check(weight: Tensor, threshold: float) -> None:
    other, steps = apart(weight), steps_of(weight)
    assert not other.is_contiguous() or weight.numel() == 1
    for limit in (threshold, float("inf")):
        assert all(map(torch.equal, extremes(weight, limit), extremes(other, limit)))
    for low, high in ((-127, 127), (-7, 7), (-128, 127)):
        assert torch.equal(round_to_grid(weight, steps, low, high), round_to_grid(other, steps, low, high))
    values = round_to_grid(weight, steps)
    noise, signal, cut = rounding_errors(weight, values, steps)
    expected = rounding_errors(other, values, steps)
    assert (noise, signal) == pytest.approx(expected[:2], rel=1e-4, abs=1e-35)  # torch adds in float32
    assert cut == expected[2]
    assert torch.equal(row_sums(values), values.sum(dim=1, dtype=torch.int32))


@given(matrices(), st.floats(0, 1))
@settings(max_examples=150)
def test_native_passes_give_the_same_bits(weight: Tensor, share: float) -> None:
    count = max(1, int(share * weight.numel()))
    ordered = weight.float().abs().flatten().sort(descending=True).values
    threshold = largest_magnitude(weight, count)
    assert threshold == ordered[count - 1]
    assert largest_magnitude(apart(weight), count) == threshold
    check(weight, float(threshold))


def test_every_number_is_read_exactly(every_number: Tensor) -> None:
    check(every_number[:, ::3].contiguous(), 1.0)
    largest = extremes(every_number.reshape(-1, 1))[1]
    assert torch.equal(largest.flatten(), every_number.float().abs().flatten())


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads: int) -> None:
    weight = torch.randn(700, 1000, generator=torch.Generator().manual_seed(0)).half()
    values, before = torch.empty(weight.shape, dtype=torch.int8), torch.get_num_threads()
    steps = steps_of(weight)
    _native.round_into(
        weight.view(torch.int16).numpy(), False, steps.flatten().numpy(), -127, 127, values.numpy(), threads
    )
    assert torch.equal(values, round_to_grid(weight, steps))
    torch.set_num_threads(threads)
    try:
        assert float(largest_magnitude(weight, 7000)) == float(weight.float().abs().flatten().topk(7000).values[-1])
        assert rounding_errors(weight, values, steps)[2] == rounding_errors(apart(weight), values, steps)[2]
    finally:
        torch.set_num_threads(before)


def test_a_guess_that_is_too_high_costs_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(100, 2000, dtype=torch.float16)
    weight.view(-1)[:: -(-weight.numel() // weights.SAMPLE)] = 1  # the sample sees nothing else
    assert largest_magnitude(weight, 100_000) == 0
    weight[0] = 2
    assert largest_magnitude(weight, 1000) == 2


def test_arrays_that_do_not_fit_are_refused() -> None:
    matrix, rows = np.zeros((3, 4), np.float32), np.zeros(3, np.float32)
    out = np.zeros((3, 4), np.int8)
    with pytest.raises(ValueError, match=r"^weights: must be a C-contiguous matrix"):
        _native.round_into(matrix.T, False, rows, -127, 127, out, 1)
    with pytest.raises(ValueError, match=r"^weights: numbers must have 4 bytes, or 2"):
        _native.round_into(matrix.astype(np.float64), False, rows, -127, 127, out, 1)
    with pytest.raises(ValueError, match=r"^steps, out: "):
        _native.round_into(matrix, False, rows[:2], -127, 127, out, 1)
    with pytest.raises(ValueError, match=r"^low, high: "):
        _native.round_into(matrix, False, rows, -127, 200, out, 1)
    with pytest.raises(ValueError, match=r"^normal, largest: "):
        _native.extremes_into(matrix, False, 1.0, rows[:2], rows, 1)
    with pytest.raises(ValueError, match=r"^sums: "):
        _native.row_sums_into(out, np.zeros(4, np.int32), 1)
