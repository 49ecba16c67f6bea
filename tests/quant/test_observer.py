"""Observers: their ranges, and that they minimise what they say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrun.ops.format.arithmetic import activation_grid, quantize_activation
from slimrun.ops.quant.observer import HistogramObserver, MinMaxObserver, make_observer, range_parameter


def squared_error(x: torch.Tensor, low: float, high: float) -> float:
    grid = activation_grid(low, high, torch.float32)
    return float(((quantize_activation(x, grid).float() - grid.offset) * grid.scale - x).square().mean())


def test_minmax_is_the_mean_of_the_batches_extremes() -> None:
    observer = MinMaxObserver()
    for batch in ([-1.0, 2.0], [-3.0, 4.0], [0.5, 9.0]):
        observer.update(torch.tensor(batch))
    low, high = observer.range()
    assert low == pytest.approx((-1 - 3 + 0.5) / 3)
    assert high == pytest.approx(5.0)


def test_histogram_beats_the_extremes_and_every_coarse_shrink_of_them() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    x[0] = 25.0
    observer = HistogramObserver()
    for batch in x.split(50_000):
        observer.update(batch)
    low, high = observer.range()
    error = squared_error(x, low, high)
    assert error < 0.8 * squared_error(x, float(x.min()), float(x.max()))
    best = min(
        squared_error(x, float(x.min()) * a / 16, float(x.max()) * b / 16) for a in range(8, 17) for b in range(1, 17)
    )
    assert error <= best * 1.02


@settings(max_examples=30)
@given(st.permutations([0.01, 0.3, 2.0, 55.0]))
def test_histogram_does_not_depend_on_the_order_of_batches(order: list[float]) -> None:
    batches = {
        size: torch.randn(500, generator=torch.Generator().manual_seed(int(size * 100))) * size for size in order
    }
    expected, observer = HistogramObserver(), HistogramObserver()
    for size in sorted(batches):
        expected.update(batches[size])
    for size in order:
        observer.update(batches[size])
    assert observer.counts.sum() == 2000
    assert observer.range() == expected.range()


def test_histogram_of_nothing_but_zeros() -> None:
    observer = HistogramObserver()
    observer.update(torch.zeros(10))
    assert observer.range() == (0.0, 0.0)
    observer.update(torch.tensor([0.0, 1.0]))
    assert observer.range()[1] > 0.5


@pytest.mark.parametrize(
    ("kind", "tails", "expected"),
    [
        ("auto", 50.0, HistogramObserver),
        ("auto", 50.1, MinMaxObserver),
        ("minmax", 1.0, MinMaxObserver),
        ("histogram", 99.0, HistogramObserver),
    ],
)
def test_automatic_choice(kind: str, tails: float, expected: type) -> None:
    assert type(make_observer(kind, tails)) is expected


def test_range_parameter() -> None:
    assert range_parameter(2.0, -6.0, 4.0) == 3.0
    assert range_parameter(0.0, 0.0, 0.0) == 0.0
