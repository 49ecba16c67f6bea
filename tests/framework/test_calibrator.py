"""The walk over a model: which linears, in which order they are calibrated, what is left of the float model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from ops.framework.int8_linear import Int8Linear
from ops.framework.pytorch import Calibrator
from ops.framework.pytorch.network import linear_names
from ops.quant.base import activation_grid
from ops.quant.none import NoQuantization
from ops.quant.w8a8 import W8A8
from ops.quant.w8a8s import W8A8S

from .chatglm import VOCABULARY, ChatGLMForConditionalGeneration
from .chatglm import chatglm as make_chatglm

PRESET = Path(__file__).parents[2] / "conf" / "experiment" / "chatglm2_6b.yaml"


def samples(count: int = 4, seed: int = 0) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randint(0, VOCABULARY, (1, 9), generator=generator)] for _ in range(count)]


@pytest.fixture
def chatglm() -> ChatGLMForConditionalGeneration:
    return make_chatglm()


def test_preset_of_the_seed_fits_chatglm2s_names(chatglm: ChatGLMForConditionalGeneration) -> None:
    preset = yaml.safe_load(PRESET.read_text(encoding="utf-8"))
    quantizer = W8A8S(**preset["quant"])
    layers = Calibrator(chatglm, quantizer, samples()).run()
    float_layers = [layer.name for layer in layers if not layer.quantized]
    assert float_layers == [*preset["quant"]["ignore"], "transformer.output_layer"]
    assert len(preset["calibration"]["prompts"]) == 5
    assert isinstance(chatglm.get_submodule("transformer.encoder.layers.1.self_attention.query_key_value"), Int8Linear)


@pytest.mark.parametrize(("quantizer", "error"), [(W8A8(), 0.08), (W8A8S(fraction=0.1), 0.25)], ids=["w8a8", "w8a8s"])
def test_quantized_model_stays_close_and_keeps_biases(
    chatglm: ChatGLMForConditionalGeneration, quantizer: W8A8, error: float
) -> None:
    ids = samples(1, seed=9)[0][0]
    expected = chatglm(ids).logits.detach()
    bias = chatglm.get_submodule("transformer.encoder.layers.0.self_attention.query_key_value").bias.detach()
    Calibrator(chatglm, quantizer, samples()).run()
    found = chatglm(ids).logits.detach()
    assert float((found - expected).norm() / expected.norm()) < error
    fused = chatglm.get_submodule("transformer.encoder.layers.0.self_attention.query_key_value")
    assert torch.equal(fused.stored()["bias"], bias)
    without = (fused.quant_bias.double() + fused.grid.offset * fused.weight.sum(dim=1)) * fused.deq_scale
    torch.testing.assert_close(without, bias.double(), atol=float(fused.deq_scale.max()), rtol=0)


def test_each_layer_is_calibrated_on_what_its_quantized_predecessors_produce() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    batches = [[torch.randn(20, 8)] for _ in range(3)]
    layers = Calibrator(model, W8A8S(fraction=0.1, observer="minmax"), batches).run()
    first, second = model[0], model[2]
    step = (first.deq_scale / first.grid.scale).unsqueeze(1)
    # by hand: the mean of extremes moves with every batch, and the first layer's grid with it
    low = high = second_low = second_high = 0.0
    for count, (x,) in enumerate(batches, start=1):
        low, high = low + (float(x.min()) - low) / count, high + (float(x.max()) - high) / count
        grid = activation_grid(low, high, torch.float32)
        quantized = ((x / grid.scale).round() + grid.offset).clamp(-128, 127)
        seen = torch.relu((quantized - grid.offset) * grid.scale @ (first.weight * step).t() + first.bias)
        second_low += (float(seen.min()) - second_low) / count
        second_high += (float(seen.max()) - second_high) / count
    assert (layers[0].input_low, layers[0].input_high) == (low, high)
    assert layers[1].input_high == pytest.approx(second_high, rel=0.005)
    assert layers[2].quantized is False
    assert second.grid.scale == pytest.approx((second_high - min(0.0, second_low)) / 255, rel=0.005)


def test_fallback_takes_the_heaviest_tails(chatglm: ChatGLMForConditionalGeneration) -> None:
    spiky = "transformer.encoder.layers.1.mlp.dense_4h_to_h"
    chatglm.get_submodule(spiky).register_forward_pre_hook(lambda _, x: (x[0] + 500 * (x[0] == x[0].max()),))
    layers = Calibrator(chatglm, W8A8S(fraction=0.1, fallback_level=1), samples()).run()
    assert [layer.name for layer in layers if layer.fallback] == [spiky]
    assert isinstance(chatglm.get_submodule(spiky), nn.Linear)
    table = {layer.name: layer for layer in layers}
    assert table[spiky].range_parameter == max(layer.range_parameter for layer in layers)


def test_more_fallback_than_layers_leaves_everything_float(chatglm: ChatGLMForConditionalGeneration) -> None:
    layers = Calibrator(chatglm, W8A8(fallback_level=99), samples()).run()
    assert not any(layer.quantized for layer in layers)


def test_the_last_linear_can_be_quantized_too(chatglm: ChatGLMForConditionalGeneration) -> None:
    Calibrator(chatglm, W8A8(ignore_last_linear=False), samples()).run()
    assert linear_names(chatglm) == {}


def test_no_quantization_touches_nothing(chatglm: ChatGLMForConditionalGeneration) -> None:
    before = dict(chatglm.named_modules())
    layers = Calibrator(chatglm, NoQuantization(), []).run()
    assert dict(chatglm.named_modules()) == before
    assert not any(layer.quantized for layer in layers)


def test_calibration_without_samples_is_refused(chatglm: ChatGLMForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match="need calibration samples"):
        Calibrator(chatglm, W8A8(), []).run()


def test_a_layer_with_nan_is_named(chatglm: ChatGLMForConditionalGeneration) -> None:
    name = "transformer.encoder.layers.1.self_attention.dense"
    with torch.no_grad():
        chatglm.get_submodule(name).weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"{name}: the weight holds NaN"):
        Calibrator(chatglm, W8A8(observer="minmax"), samples()).run()


def test_hooks_are_removed_when_a_sample_fails(chatglm: ChatGLMForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match=r"calibration sample 0: .*index out of range"):
        Calibrator(chatglm, W8A8(), [[torch.tensor([[VOCABULARY + 1]])]]).run()
    assert not any(module._forward_pre_hooks for module in chatglm.modules())
