"""Smoothing of whole models: the float function stays, norms and linears take it, what cannot be folded is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from slimrun.ops.calibration.smoothing import foldable_by_runs, smooth
from slimrun.ops.calibration.states import Walk
from slimrun.ops.framework.pytorch.calibrator import Calibrator
from slimrun.ops.framework.pytorch.network import TorchNetwork
from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic

from ..conftest import tiny

TOKENS = [torch.arange(3, 40).unsqueeze(0), torch.arange(100, 140).unsqueeze(0)]
QUANTIZER = Lowbit(do_smooth=True)


class Gated(nn.Module):
    """A norm, two linears, and a choice of what else happens to the norm's output."""

    def __init__(self, norm: nn.Module, beside: bool = False) -> None:
        super().__init__()
        self.norm = norm
        self.first = nn.Linear(32, 48)
        self.second = nn.Linear(32, 48, bias=False)
        self.beside = beside

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        out = self.first(x) * torch.sigmoid(self.second(x))
        return out + x.sum(dim=-1, keepdim=True) if self.beside else out


class OffsetRMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


class SquareRMSNorm(OffsetRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight


def heavy_input() -> Tensor:
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    x[:, 3] *= 80
    return x


def test_a_llama_computes_the_same_and_every_norm_before_linears_has_a_bias() -> None:
    model = tiny(tie_word_embeddings=False).module
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[7] = 90.0
        before = model(input_ids=TOKENS[0]).logits
        names = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
        walk = Walk(TorchNetwork(model, model.model), [{"input_ids": ids} for ids in TOKENS], 1)
        smoothed, notes = smooth(walk, QUANTIZER, names)
        after = model(input_ids=TOKENS[0]).logits
    norms = {f"model.layers.{i}.{kind}" for i in (0, 1) for kind in ("input_layernorm", "post_attention_layernorm")}
    assert set(smoothed) == norms
    assert notes == []
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    keys = model.state_dict().keys()
    assert {f"{name}.bias" for name in norms} <= keys
    assert "model.layers.0.self_attn.k_proj.bias" in keys
    assert "model.layers.0.self_attn.o_proj.bias" not in keys
    assert model.model.layers[0].input_layernorm.weight[7] < 30


METHODS = [partial(Lowbit, observer="minmax"), W8A8Dynamic]


@pytest.mark.parametrize("method", METHODS, ids=["lowbit", "w8a8_dynamic"])
@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_smoothed_models_lose_less(norm: type[nn.Module], method: Callable[..., Lowbit | W8A8Dynamic]) -> None:
    errors = []
    for do_smooth in (False, True):
        torch.manual_seed(1)
        model = Gated(norm(32))
        exact = model(heavy_input())
        quantizer = method(do_smooth=do_smooth, ignore_last_linear=False)
        Calibrator(model, quantizer, [[heavy_input()]]).run()
        errors.append(float((model(heavy_input()) - exact).detach().norm() / exact.detach().norm()))
    assert errors[1] < 0.7 * errors[0]


def test_dynamic_inputs_give_no_norm_a_bias_and_need_samples() -> None:
    model, quantizer = Gated(nn.RMSNorm(32)), W8A8Dynamic(do_smooth=True, ignore_last_linear=False)
    norms = set(model.norm.state_dict())
    with pytest.raises(ValueError, match="smoothing and fallback_level need calibration samples"):
        Calibrator(model, quantizer, []).run()
    Calibrator(model, quantizer, [[heavy_input()]]).run()
    assert set(model.norm.state_dict()) == norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_norm_whose_output_goes_elsewhere_stays(dtype: torch.dtype) -> None:
    model, x = Gated(nn.RMSNorm(32), beside=True).to(dtype), heavy_input().to(dtype)
    before = model(x)
    smoothed = smooth(Walk(TorchNetwork(model), [(x,)], 1), QUANTIZER, {"first", "second"})
    assert smoothed == ([], ["do_smooth=true: 1 fold into norm skipped, the model computes something else with it"])
    assert torch.equal(model(x), before)


def test_a_norm_may_add_one_to_its_weight() -> None:
    model = Gated(OffsetRMSNorm(32, eps=1e-6))
    with torch.no_grad():
        before = model(heavy_input())
        assert smooth(Walk(TorchNetwork(model), [(heavy_input(),)], 1), QUANTIZER, {"first", "second"})[0] == ["norm"]
        torch.testing.assert_close(model(heavy_input()), before, rtol=1e-4, atol=1e-4)


class Doubled(nn.Linear):
    """Knows nothing of a bias."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ (2 * self.weight).t()


@pytest.mark.parametrize("kind", [SquareRMSNorm, Doubled])
def test_parts_that_are_no_norms_and_linears_stay(kind: type[nn.Module]) -> None:
    model = Gated(nn.RMSNorm(32) if kind is Doubled else SquareRMSNorm(32, eps=1e-6))
    if kind is Doubled:
        model.second = Doubled(32, 48, bias=False)
    before = model(heavy_input())
    changed, notes = smooth(Walk(TorchNetwork(model), [(heavy_input(),)], 1), QUANTIZER, {"first", "second"})
    assert changed == []
    assert len(notes) == 1
    assert torch.equal(model(heavy_input()), before)


class Sampled(nn.Module):
    """Gives a token, as a network's `generate` does: what is folded wrongly shows in the numbers before it."""

    def __init__(self, inner: Gated) -> None:
        super().__init__()
        self.inner, self.last = inner, nn.RMSNorm(48)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x)).argmax(dim=-1) * 0


@pytest.mark.parametrize(
    ("norm", "beside", "dtype", "offsets"),
    [
        (nn.RMSNorm, False, torch.float32, {"inner.norm": 0.0}),
        (nn.RMSNorm, False, torch.float16, {"inner.norm": 0.0}),
        (OffsetRMSNorm, False, torch.float32, {"inner.norm": 1.0}),
        (SquareRMSNorm, False, torch.float32, {}),
        (nn.RMSNorm, True, torch.float32, {}),
        (nn.RMSNorm, True, torch.float16, {}),
    ],
)
def test_whole_networks_show_it_too(
    norm: type[nn.RMSNorm], beside: bool, dtype: torch.dtype, offsets: dict[str, float]
) -> None:
    """What a framework without a probe of blocks does; the weights stay."""
    torch.manual_seed(0)
    whole = Sampled(Gated(norm(32, eps=1e-6), beside)).to(dtype)
    nn.init.normal_(whole.inner.norm.weight, 0.5, 0.3)
    weights = {key: tensor.clone() for key, tensor in whole.state_dict().items()}
    readers = {"inner.norm": ["inner.first", "inner.second"]}
    with torch.no_grad():
        assert foldable_by_runs(TorchNetwork(whole), readers, lambda: whole(heavy_input().to(dtype))) == offsets
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, weights[key]), key
