"""Rate-distortion optimized quantization of other kinds of models, and what becomes of inputs that lose most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from slimrun.ops import bundle, load_bundle
from slimrun.ops.calibration.base import Layer
from slimrun.ops.calibration.ranges import InputRange
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native
from slimrun.ops.format.arithmetic import QuantizedWeight
from slimrun.ops.format.linear import Int8Linear, quantized_linear
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.ops.model.tokenizer import byte_tokenizer
from slimrun.ops.quant.rdoq import RDOQ, Fallback

from ..conftest import ARCHITECTURE, TEXTS, tiny
from .chatglm import chatglm as make_chatglm
from .test_rate_distortion import calibrator


def test_fused_projections_and_biases() -> None:
    model = TorchModel(make_chatglm(), byte_tokenizer(), "chatglm", "0")
    layers = calibrator(model, RDOQ(target_bits=6.0)).run()
    quantized = [layer.name.rpartition(".")[2] for layer in layers if layer.quantized]
    assert quantized == ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"] * 2
    ids = np.array([model.encode(TEXTS[0])[:64]])
    assert np.isfinite(model.hidden(ids)).all()


VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
UNUSUAL: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": ARCHITECTURE | {"model_type": "gemma3_text", "head_dim": 16}, "vision_config": VISION,
               "mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7},
    "mamba": ARCHITECTURE,
    "ctrl": ARCHITECTURE | {"n_embd": 64, "n_layer": 2, "n_head": 4, "dff": 128},
}  # fmt: skip


@pytest.mark.parametrize("kind", UNUSUAL)
def test_towers_without_tokens_no_attention_and_embeddings_changed_in_place(kind: str) -> None:
    config = AutoConfig.for_model(**(UNUSUAL[kind] | {"model_type": kind}))
    torch.manual_seed(0)
    model = TorchModel(AutoModelForCausalLM.from_config(config).eval(), byte_tokenizer(), kind, "0")
    layers = calibrator(model, RDOQ(target_bits=6.0, tune_rate=0.002)).run()
    assert sum(layer.quantized for layer in layers) > len(layers) / 2
    assert np.isfinite(model.hidden(np.array([model.encode(TEXTS[0])]))).all()


def test_the_worst_inputs_climb_a_ladder(tmp_path: Path) -> None:
    """Where a step a token costs as much as the worst grid that stays, inputs stay float."""
    formats: dict[str, dict[str, str]] = {}
    for inputs in (["dynamic"], ["dynamic", "float"], ["float"]):
        model = tiny(num_hidden_layers=4)
        layers = calibrator(model, RDOQ(target_bits=5.0, fallback=Fallback(0.6, inputs))).run()
        formats["".join(inputs)] = {layer.name: layer.format for layer in layers if layer.format}
        stay = [layer.input_loss for layer in layers if layer.quantized and not layer.format]
        for layer in layers:
            if layer.format == "W8A8_DYNAMIC":
                assert 0 < layer.input_loss_left < layer.input_loss
                assert not layer.float_inputs
            elif layer.format:
                assert (layer.input_loss_left, layer.float_inputs) == (0.0, True)
            elif layer.quantized:
                assert layer.input_loss_left == layer.input_loss
        assert stay
        folder = tmp_path / "".join(inputs)
        tensors = model.tensors()
        coded = Compressor(Native()).run({name: tensors[f"{name}.weight"].numpy() for name in model.quantized()})
        bundle.write(
            folder, tensors, coded, "W8A8S", Native(), model.save_description, formats=formats["".join(inputs)]
        )
        assert load_bundle(folder).logits_checksum() == model.logits_checksum()
    assert formats["dynamic"].keys() == formats["dynamicfloat"].keys() == formats["float"].keys() != set()
    assert set(formats["dynamic"].values()) == {"W8A8_DYNAMIC"}
    assert set(formats["dynamicfloat"].values()) == {"W8A8_DYNAMIC", "W8A16"}
    assert set(formats["float"].values()) == {"W8A16"}


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_linears_that_share_an_input_keep_it_float_together(share: float) -> None:
    layers = calibrator(tiny(num_hidden_layers=4), RDOQ(target_bits=5.0, fallback=Fallback(share))).run()
    kept = {layer.name for layer in layers if layer.float_inputs}
    covered = [layer.name for layer in layers if layer.quantized]
    assert 0 < len(kept) <= share * len(covered)
    for name in covered:
        parent, _, own = name.rpartition(".")
        for group in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            if own in group:
                assert len({f"{parent}.{member}" in kept for member in group}) == 1


def test_gptq_takes_the_target_with_a_step_a_tensor_or_a_row() -> None:
    knobs: dict[str, Any] = {"importance": "inputs", "smooth_alpha": None, "price": 0, "measured_prompts": 0}
    for steps in ("tensor", "row"):
        model = tiny()
        quantizer = RDOQ(target_bits=5.0, steps=steps, tune_rate=0, fallback=Fallback(0), clip_first=[], **knobs)
        calibrator(model, quantizer).run()
        linear = model.module.get_submodule("model.layers.0.mlp.up_proj")
        scales = (linear.deq_scale / linear.grid.scale).unique()
        assert (len(scales) == 1) == (steps == "tensor")
        weights = {name: model.tensors()[f"{name}.weight"].numpy() for name in model.quantized()}
        size = sum(part.nbytes for parts in Compressor(Native()).run(weights).values() for part in parts.values())
        rows, count = sum(map(len, weights.values())), sum(weight.size for weight in weights.values())
        assert (8 * size + 32 * rows) / count == pytest.approx(5.0, rel=0.01)


def test_waterfilling_leaves_a_tensor_one_step_beside_the_scales_that_its_rows_take() -> None:
    knobs: dict[str, Any] = {"importance": "inputs", "smooth_alpha": None, "price": 0, "measured_prompts": 0}
    model, plain = tiny(), tiny()
    quantizer = RDOQ(
        target_bits=6.0,
        steps="tensor",
        columns="waterfilled",
        tune_rate=0,
        activations="float",
        fallback=Fallback(0),
        **knobs,
    )
    calibrator(model, quantizer).run()
    ids = np.array([plain.encode(TEXTS[0])[:64]])
    np.testing.assert_allclose(model.hidden(ids), plain.hidden(ids), atol=0.2)
    up, norm = (model.module.get_submodule(f"model.layers.0.{name}") for name in ("mlp.up_proj", "input_layernorm"))
    scale = (plain.module.get_submodule("model.layers.0.input_layernorm").weight / norm.weight).detach()
    assert float(scale.max() / scale.min()) > 1.05
    assert float(scale.log().mean()) == pytest.approx(0, abs=1e-5)
    steps, exact = up.weight_scale.reshape(-1, 1), plain.module.get_submodule("model.layers.0.mlp.up_proj").weight
    assert float(steps.max() / steps.min()) > 1.1
    norm = model.module.get_submodule("model.layers.0.post_attention_layernorm")
    columns = plain.module.get_submodule("model.layers.0.post_attention_layernorm").weight / norm.weight
    spread = (up.weight * steps / columns).std(dim=1) / exact.std(dim=1)  # what the row was divided by
    torch.testing.assert_close(steps / spread.reshape(-1, 1), steps[:1].expand_as(steps) / spread[0], rtol=0.1, atol=0)


def test_ranges_of_down_projections_leave_out_first_tokens() -> None:
    weight = QuantizedWeight(torch.ones(2, 4, dtype=torch.int8), torch.ones(2, 1))
    linear = quantized_linear("W8A8S", weight, None, torch.float32)
    assert isinstance(linear, Int8Linear)
    x = torch.tensor([[[90.0, 0, 0, -70.0], [1, 0, 0, -1], [0, 2, 0, 0]]])
    highest = {}
    for clips in (False, True):
        one = InputRange("down_proj", linear, weight, None, False, clips)
        one.observe("minmax", Layer("down_proj", (2, 4), quantized=True))
        one.update(x)
        assert one.tokens == 3
        highest[clips] = one.observer.range()
    assert highest == {False: (-70.0, 90.0), True: (-1.0, 2.0)}
    assert RDOQ().clips_first("model.layers.3.mlp.down_proj")
    assert not RDOQ().clips_first("model.layers.3.mlp.up_proj")
    assert not RDOQ(clip_first=[]).clips_first("model.layers.3.mlp.down_proj")
