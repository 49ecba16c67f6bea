"""The weight formulas against an independent numpy statement of them, golden numbers, and their corner cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slimrun.ops.compress import entropy_bits
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.rdoq_data_free import RDOQDataFree
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8s import W8A8S, outlier_threshold
from slimrun.runner.config import composed

CONF = Path(__file__).parents[2] / "conf" / "quant"


def methods() -> list[Quantizer]:
    """Every choice of conf/quant with its yaml's values, and with one step a tensor where it has the choice."""
    choices = []
    for file in sorted(CONF.glob("*.yaml")):
        values = composed([f"quant={file.stem}"]).quant
        method: Quantizer = instantiate(values)
        if method.quant_type != "FLOAT":
            choices.append(method)
            if "per_channel" in values:
                choices.append(instantiate(values, per_channel=False))
    return choices


def co_sparse(weight: np.ndarray, fraction: float, per_channel: bool) -> tuple[np.ndarray, np.ndarray]:
    """The formula of the sparse quantizer, stated with a full sort in numpy."""
    magnitudes = np.sort(np.abs(weight).reshape(-1))[::-1]
    threshold = magnitudes[int(np.floor(fraction * weight.size)) - 1]
    if per_channel:
        normal = np.where(np.abs(weight) <= threshold, np.abs(weight), 0).max(axis=1, keepdims=True)
    else:
        normal = np.full((1, 1), threshold)
    step = (normal / 7).astype(np.float32)
    return np.clip(np.rint(weight / step), -127, 127).astype(np.int8), step


@pytest.mark.parametrize("fraction", [0.01, 0.011, 0.03, 0.1])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("planted", [0.0, 40.0])
def test_w8a8s_equals_the_formula(fraction: float, per_channel: bool, planted: float) -> None:
    weight = np.random.default_rng(1).standard_normal((64, 160)).astype(np.float32)
    weight[3, 5] += planted
    quantized = W8A8S(fraction=fraction, per_channel=per_channel).quantize_weight(torch.from_numpy(weight))
    integers, step = co_sparse(weight, fraction, per_channel)
    np.testing.assert_array_equal(quantized.values.numpy(), integers)
    np.testing.assert_allclose(quantized.scale.numpy(), step, rtol=1e-7)


def test_w8a8s_golden() -> None:
    weight = torch.tensor([[0.1, -0.2, 0.3, 0.7], [1.4, -1.4, 0.2, 10.0], [0.0, 0.0, 0.0, 0.0], [0.5, -0.5, 0.5, 0.5]])
    quantized = W8A8S(fraction=0.1).quantize_weight(weight)  # floor(0.1 * 16) = 1: T = 10, nothing is an outlier
    torch.testing.assert_close(quantized.scale.reshape(-1), torch.tensor([0.1, 10 / 7, 10 / 7, 0.5 / 7]))
    assert quantized.values.tolist() == [[1, -2, 3, 7], [1, -1, 0, 7], [0, 0, 0, 0], [7, -7, 7, 7]]


def test_w8a8_golden() -> None:
    quantized = W8A8().quantize_weight(torch.tensor([[1.27, -0.635, 0.01], [0.0, 0.0, 0.0]]))
    assert quantized.values.tolist() == [[127, -64, 1], [0, 0, 0]]  # -63.5 rounds half to even
    torch.testing.assert_close(quantized.scale, torch.tensor([[0.01], [0.01]]))


def test_lowbit_golden() -> None:
    weight = torch.tensor([[0.7, -0.1, 0.25, 9.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.27]])
    weight = torch.cat([weight, torch.zeros(3, 16)], dim=1)
    quantized = Lowbit(fraction=0.1).quantize_weight(weight)  # floor(0.1 * 20) = 2: the second largest is the threshold
    assert quantized.values[:, :4].tolist() == [[7, -1, 2, 90], [0, 0, 0, 0], [0, 0, 0, 127]]
    torch.testing.assert_close(quantized.scale.reshape(-1), torch.tensor([0.1, 0.1, 0.01]))
    closed = Lowbit(open_outlier=False).quantize_weight(weight)
    assert closed.values[0, :4].tolist() == [1, 0, 0, 7]
    assert int(closed.values.abs().max()) == 7


@pytest.mark.parametrize("weight", [torch.full((3, 8), 0.5), torch.tensor([[0.5], [-0.25]])], ids=["equal", "column"])
def test_lowbit_sigma_without_spread_keeps_the_weights(weight: torch.Tensor) -> None:
    quantized = Lowbit(use_sigma=True).quantize_weight(weight)
    torch.testing.assert_close(quantized.values * quantized.scale, weight, rtol=0.01, atol=0)


def test_outliers_use_the_same_step_and_saturate() -> None:
    weight = torch.full((10, 20), 0.07)
    weight[0, 0], weight[1, 0] = 0.7, 500.0
    quantized = W8A8S(fraction=0.015).quantize_weight(weight)  # three outliers asked, T = 0.07
    assert quantized.values[0, 0] == 70
    assert quantized.values[1, 0] == 127
    assert quantized.values[2:].unique().tolist() == [7]


@pytest.mark.parametrize("method", methods(), ids=repr)
class TestEveryMethod:
    def test_zero_tensor_and_zero_row(self, method: Quantizer) -> None:
        weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
        weight[2] = 0
        for case in (weight, torch.zeros(4, 8)):
            quantized = method.quantize_weight(case)
            assert torch.isfinite(quantized.scale).all()
            assert (quantized.scale > 0).all()
            assert not quantized.values[(case == 0).all(dim=1)].any()

    def test_row_of_outliers_only(self, method: Quantizer) -> None:
        weight = torch.full((100, 100), 0.01)
        weight[0] = 5.0  # one percent of the tensor, all of it in one row
        quantized = method.quantize_weight(weight)
        restored = quantized.values[0] * quantized.scale.expand(100, 1)[0]
        assert torch.isfinite(quantized.scale).all()
        assert (restored > 0).all()

    def test_tensor_smaller_than_one_outlier(self, method: Quantizer) -> None:
        quantized = method.quantize_weight(torch.tensor([[0.5, -0.25]]))
        torch.testing.assert_close(quantized.values * quantized.scale, torch.tensor([[0.5, -0.25]]), atol=0.04, rtol=0)

    def test_refuses_what_is_no_finite_matrix(self, method: Quantizer) -> None:
        with pytest.raises(ValueError, match="NaN or infinity"):
            method.quantize_weight(torch.tensor([[1.0, float("nan")]]))
        with pytest.raises(ValueError, match="2 dimensions"):
            method.quantize_weight(torch.ones(3))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_weights_quantize_as_their_float32_values(
        self, method: Quantizer, dtype: torch.dtype
    ) -> None:
        weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
        half, full = method.quantize_weight(weight), method.quantize_weight(weight.float())
        assert torch.equal(half.values, full.values)
        assert torch.equal(half.scale, full.scale)

    @settings(max_examples=60)
    @given(
        hnp.arrays(
            np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(-1e4, 1e4, width=32)
        )
    )
    def test_properties(self, method: Quantizer, weight: np.ndarray) -> None:
        quantized = method.quantize_weight(torch.from_numpy(weight))
        assert quantized.values.dtype == torch.int8
        assert int(quantized.values.min()) >= -127
        assert torch.isfinite(quantized.scale).all()
        assert (quantized.scale > 0).all()
        unclipped = quantized.values.abs() < 127
        error = (torch.from_numpy(weight) - quantized.values * quantized.scale).abs()
        priced = isinstance(method, RDOQDataFree)  # it may take the second level, for its shorter code
        farthest = 1.0001 if priced else 0.5001
        assert (error[unclipped] <= (quantized.scale * farthest).expand_as(error)[unclipped] + 1e-6).all()


def test_a_price_takes_bits_from_the_same_error() -> None:
    weight = torch.randn(400, 576, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 1.5, 400)[:, None]
    for bits in (2.0, 3.5):
        errors = []
        for price in (0.0, 0.5):
            quantized = RDOQDataFree(target_bits=bits, price=price).quantize_weight(weight)
            assert entropy_bits(quantized.values.numpy()) == pytest.approx(bits - 32 / 576, rel=0.02)  # tables
            error = (quantized.values * quantized.scale - weight) / weight.square().mean(dim=1, keepdim=True).sqrt()
            errors.append(float(error.square().mean()))
        assert errors[1] < errors[0]


def test_steps_by_magnitude_are_where_the_objective_of_entquant_is_least() -> None:
    weight = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.3, 3, 64)[:, None]
    steps = RDOQDataFree(target_bits=3.0, steps="magnitude", price=0).quantize_weight(weight).scale

    def parts(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = (weight / scale).round()
        return (values * scale - weight).abs().mean(dim=1) / weight.abs().mean(), values.abs().mean(dim=1)

    factors = torch.logspace(-1, 1, 81, base=2.0)
    candidates = [parts(steps * factor) for factor in factors]
    penalty = float(parts(steps)[0].sum() / parts(steps)[1].sum())  # both parts are then equal, as at the least sum
    losses = torch.stack([error + penalty * magnitude for error, magnitude in candidates])
    best = factors[losses.argmin(dim=0)]
    assert (best.log2().abs() < 0.25).all()  # of each row, whose spreads differ ten times
    with pytest.raises(ValueError, match="steps=nope is not known; allowed: spread, magnitude"):
        RDOQDataFree(steps="nope")


@given(st.floats(0.01, 0.1))
def test_share_of_outliers_is_at_most_the_fraction(fraction: float) -> None:
    weight = torch.randn(40, 50, generator=torch.Generator().manual_seed(3))
    above = int((weight.abs() > outlier_threshold(weight.abs(), fraction)).sum())
    assert above == int(fraction * 2000) - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 0.5}, "fraction=0.5 is out of range; allowed: 0.01 to 0.1"),
        ({"observer": "median"}, "observer=median is not known; allowed: auto, minmax, histogram"),
        ({"fallback_level": -1}, "fallback_level=-1 is out of range"),
    ],
)
def test_knobs_are_validated(arguments: dict[str, object], message: str) -> None:
    for method in (W8A8S, Lowbit):
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            method(**arguments)  # type: ignore[arg-type]


def test_sigma_factor_is_validated() -> None:
    with pytest.raises(ValueError, match=r"sigma_factor=2.9 is out of range; allowed: 3.0 to 4.0"):
        Lowbit(sigma_factor=2.9)


def test_ignored_names_globs_and_the_last_linear() -> None:
    names = ["layers.0.q", "layers.0.down", "layers.1.q", "layers.1.down", "lm_head"]
    assert W8A8S(ignore=["*.down", "layers.0.q"]).ignored(names) == {*names} - {"layers.1.q"}
    assert W8A8S(ignore_last_linear=False).ignored(names) == set()
    with pytest.raises(ValueError, match=r"ignore=\[layers.0.dwn\] matches no linear.*near it: layers.0.down"):
        W8A8S(ignore=["layers.0.dwn"]).ignored(names)


@pytest.mark.parametrize(
    "method",
    [*methods(), W8A8S(fraction=0.1), Lowbit(use_sigma=True), Lowbit(open_outlier=False)],
    ids=lambda method: repr(method).replace("ignore=[], ", ""),
)
def test_expected_bits_are_those_of_gaussian_weights(method: Quantizer) -> None:
    weight = torch.randn(400, 576, generator=torch.Generator().manual_seed(0))
    entropy = entropy_bits(method.quantize_weight(weight).values.numpy())
    widest_row_decides = isinstance(method, Lowbit) and not method.per_channel
    assert method.expected_bits((400, 576)) == pytest.approx(entropy, rel=0.1 if widest_row_decides else 0.02)
