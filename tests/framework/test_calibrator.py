"""The walk over a model: which linears, in which order they are calibrated, what is left of the float model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from slimrun.ops import bundle
from slimrun.ops.calibration.selection import HEAVIEST
from slimrun.ops.format.arithmetic import ActivationGrid, activation_grid
from slimrun.ops.format.linear import Int8Linear, WeightOnlyLinear, quantized_linear, restored_linear
from slimrun.ops.framework.pytorch import Calibrator, PyTorch
from slimrun.ops.model.linears import linear_names
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.none import NoQuantization
from slimrun.ops.quant.rdoq import RDOQ
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic
from slimrun.ops.quant.w8a8s import W8A8S

from ..conftest import TEXTS, tiny
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
    logits = chatglm(ids).logits.detach()
    assert float((logits - expected).norm() / expected.norm()) < error
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


def test_linears_with_the_heaviest_tails_stay_float(chatglm: ChatGLMForConditionalGeneration) -> None:
    spiky = "transformer.encoder.layers.1.mlp.dense_4h_to_h"
    chatglm.get_submodule(spiky).register_forward_pre_hook(lambda _, x: (x[0] + 500 * (x[0] == x[0].max()),))
    layers = Calibrator(chatglm, W8A8S(fraction=0.1, fallback_level=1), samples()).run()
    assert [layer.name for layer in layers if layer.note == HEAVIEST and not layer.quantized] == [spiky]
    assert isinstance(chatglm.get_submodule(spiky), nn.Linear)
    table = {layer.name: layer for layer in layers}
    assert table[spiky].range_parameter == max(layer.range_parameter for layer in layers)


def test_to_keep_more_float_than_there_are_is_an_error(chatglm: ChatGLMForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match=r"fallback_level=8 leaves nothing to quantize: .* covers 8 .*: 0 to 7"):
        Calibrator(chatglm, W8A8(fallback_level=8), samples()).run()


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


def test_nothing_to_quantize_is_an_error_before_work(chatglm: ChatGLMForConditionalGeneration) -> None:
    before = dict(chatglm.named_modules())
    with pytest.raises(ValueError, match=r"ignore=\[\*\] .* leaves nothing .* are transformer"):
        Calibrator(chatglm, W8A8(ignore=["*"]), samples()).run()
    with pytest.raises(ValueError, match=r"leaves nothing to quantize: .* are none"):
        Calibrator(nn.Sequential(nn.Embedding(4, 4)), W8A8(), samples()).run()
    assert dict(chatglm.named_modules()) == before


def test_a_quantized_model_is_not_quantized_again(chatglm: ChatGLMForConditionalGeneration) -> None:
    Calibrator(chatglm, W8A8(), samples()).run()
    with pytest.raises(ValueError, match="the model is quantized already: 8 linears"):
        Calibrator(chatglm, W8A8Dynamic(), samples())
    Calibrator(chatglm, NoQuantization(), []).run()


class Experts(nn.Module):
    """Expert 1 sees rare tokens alone; with `empty` it is called without tokens too."""

    def __init__(self, empty: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.empty = empty
        self.embed = nn.Embedding(32, 16)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16)) for _ in range(2))
        self.lm_head = nn.Linear(16, 32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        rare = int(ids.max()) > 30
        if self.empty:
            self.experts[1 - rare](x[:, :0])
        return self.lm_head(x + self.experts[rare](x))


@pytest.mark.parametrize("empty", [False, True], ids=["not called", "called without tokens"])
@pytest.mark.parametrize("quantizer", [W8A8(), W8A8S(fraction=0.1), Lowbit(observer="minmax")], ids=repr)
def test_a_linear_that_no_sample_reaches_keeps_float_inputs(quantizer: Quantizer, empty: bool) -> None:
    model = Experts(empty)
    weight = model.experts[1][0].weight.detach().clone()
    calibrator = Calibrator(model, quantizer, [[torch.arange(9).repeat(1, 4)]])
    layers = {layer.name: layer for layer in calibrator.run()}
    unreached = ["experts.1.0", "experts.1.1"]
    assert [name for name, layer in layers.items() if layer.float_inputs] == unreached
    assert {layers[name].note for name in unreached} == {"inputs kept float, because no calibration sample reached it"}
    assert calibrator.notes == [f"2 linears (experts.1.0, experts.1.1): {layers[unreached[0]].note}"]
    linear = model.experts[1][0]
    assert isinstance(linear, WeightOnlyLinear)
    expected = quantizer.quantize_weight(weight)
    x = torch.randn(3, 16)
    torch.testing.assert_close(linear(x) - linear.bias, x @ (expected.values * expected.scale).t())


def test_a_linear_that_no_sample_reaches_stays_float_where_the_format_has_nothing_else() -> None:
    model = Experts()
    before = model.experts[1]
    linear = before[0]
    calibrator = Calibrator(model, W8A8(), [[torch.arange(9).repeat(1, 4)]], one_format=True)
    layers = {layer.name: layer for layer in calibrator.run()}
    assert model.experts[1][0] is linear
    assert not layers["experts.1.0"].quantized
    assert layers["experts.0.0"].quantized
    assert calibrator.notes == [
        "2 linears (experts.1.0, experts.1.1): kept float, because no calibration sample reached it"
    ]


def test_samples_that_reach_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no calibration sample reaches a linear"):
        Calibrator(Experts(), W8A8(), [[torch.arange(9).repeat(1, 4)]], forward=lambda ids: None).run()


@pytest.mark.parametrize("method", [W8A8S(fraction=0.1), RDOQ(target_bits=4.0)], ids=["w8a8s", "rdoq"])
def test_what_no_sample_reaches_has_a_format_of_the_bundle(method: Quantizer) -> None:
    """A part of the model that text does not reach: a second branch, as of a vision tower."""
    model = tiny()
    model.module.model.branch = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64))
    calibrator = PyTorch().calibrator(model, method, TEXTS, 32)
    layers = calibrator.run()
    assert [layer.name for layer in layers if layer.note] == ["model.branch.0", "model.branch.1"]
    stored = model.tensors()
    assert "model.branch.0.weight_scale" in stored
    assert "model.branch.0.input_scale" not in stored
    assert bundle.format_of("model.branch.0", stored, method.quant_type) == "W8A16"


def dead(size: float, per_channel: bool, *biases: float) -> nn.Sequential:
    """Rows 3 and 5 of the first linear, or all of them, are nearly zero, but not the biases of these two."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8))
    with torch.no_grad():
        net[0].weight[[3, 5] if per_channel else slice(None)] *= size
        net[0].bias[[3, 5]] = torch.tensor(biases)
    return net


@pytest.mark.parametrize("size", [1e-8, 1e-12, 1e-30])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", [W8A8S, W8A8, Lowbit])
def test_a_bias_beyond_int32_gets_a_step_that_holds_it(kind: type[W8A8], per_channel: bool, size: float) -> None:
    net, same = dead(size, per_channel, 5.0, -7.0), dead(size, per_channel, 0.0, 0.0)
    batches = [[torch.randn(16, 64) * scale] for scale in (1.0, 0.01, 0.3)]  # the grid moves both ways
    expected = net[0](batches[0][0]).detach()
    quantizer = kind(observer="minmax", per_channel=per_channel)
    calibrator = Calibrator(net, quantizer, batches)
    layers = calibrator.run()
    Calibrator(same, quantizer, batches).run()
    outputs = net[0](batches[0][0])
    torch.testing.assert_close(outputs[:, [3, 5]], expected[:, [3, 5]], rtol=1e-4, atol=0)
    others = [row for row in range(32) if row not in (3, 5)]
    if per_channel:
        assert net[0].raised_rows == 2
        assert torch.equal(net[0].weight[others], same[0].weight[others])
        assert torch.equal(net[0].quant_bias[others], same[0].quant_bias[others])
        assert torch.equal(net[0].deq_scale[others], same[0].deq_scale[others])
    assert layers[0].note == f"a larger step in {net[0].raised_rows} rows, so that int32 holds their bias"
    assert calibrator.notes[0].startswith("1 linear (0): a larger step in")
    restored = restored_linear(quantizer.quant_type, net[0].stored(), (32, 64))
    assert torch.equal(restored(batches[0][0]), outputs)


def test_a_row_takes_its_own_step_again_once_the_grid_allows_it() -> None:
    weight = W8A8().quantize_weight(1e-6 * torch.randn(4, 8))
    linear = quantized_linear("W8A8", weight, torch.full((4,), 3.0), torch.float32)
    assert isinstance(linear, Int8Linear)
    linear.set_grid(weight, ActivationGrid(1.0, 0))
    plain = linear.stored()
    linear.set_grid(weight, ActivationGrid(1e-3, 0))
    assert linear.raised_rows == 4
    linear.set_grid(weight, ActivationGrid(1.0, 0))
    assert linear.raised_rows == 0
    assert all(torch.equal(tensor, plain[key]) for key, tensor in linear.stored().items())
