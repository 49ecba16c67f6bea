"""compressed-tensors: transformers loads it, every integer is ours, every kind of linear computes what ours does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimrun.ops.export.compressed_tensors import CompressedTensors
from slimrun.ops.format.linear import DynamicInt8Linear, Int8Linear, QuantizedLinear
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.quant.w8a16 import W8A16

from .bundles import written

pytest.importorskip("compressed_tensors")


def linears(model: TorchModel) -> dict[str, QuantizedLinear]:
    return {name: child for name, child in model.module.named_modules() if isinstance(child, QuantizedLinear)}


def median_difference(ours: QuantizedLinear, theirs: torch.nn.Module) -> float:
    x = torch.randn(1, 16, ours.in_features, generator=torch.Generator().manual_seed(0))
    if isinstance(ours, Int8Linear):
        x *= 40 * ours.grid.scale
    with torch.inference_mode():
        expected, outputs = ours(x), theirs(x)
    if isinstance(ours, DynamicInt8Linear):  # transformers' emulation divides a token by max / 127.5, vLLM as we do
        scale = x.abs().amax(dim=2, keepdim=True) / 127.5
        weight, bias = ours.floats()
        expected = torch.nn.functional.linear((x / scale).round().clamp(-128, 127) * scale, weight, bias)
    return float(((outputs - expected).abs() / expected.abs().clamp_min(1e-30)).median())


@pytest.mark.parametrize(
    ("quantizer", "changes"),
    [
        (W8A8(), {}),
        (W8A8(per_channel=False), {"tie_word_embeddings": False}),
        (W8A8Dynamic(), {"attention_bias": True}),
        (W8A16(), {"mlp_bias": True}),
        (W8A8S(ignore_last_linear=False), {"attention_bias": True}),
        (W8A8S(fallback_level=3), {"tie_word_embeddings": False}),
    ],
    ids=repr,
)
def test_transformers_computes_what_we_do(tmp_path: Path, quantizer: Quantizer, changes: dict[str, object]) -> None:
    model = written(tmp_path / "artifact", quantizer, **changes)
    exported = CompressedTensors().run(tmp_path / "artifact", tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(exported.folder)
    quantized = {name: ours for name, ours in linears(model).items() if name != "lm_head"}  # float in these engines
    for name, ours in quantized.items():
        packed = getattr(loaded.get_submodule(name), "weight_packed", None)
        values = loaded.get_submodule(name).weight if packed is None else packed.view(torch.uint8).to(torch.int16) - 128
        assert torch.equal(values.to(torch.int8), ours.weight), name
    tokens = AutoTokenizer.from_pretrained(exported.folder)("Hello there", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        loaded(tokens)  # transformers unpacks at the first pass
    for name, ours in quantized.items():
        assert median_difference(ours, loaded.get_submodule(name)) <= 1e-6, name


def test_a_group_that_was_split_has_one_type_again(tmp_path: Path) -> None:
    written(tmp_path / "artifact", W8A8S(ignore=["*.layers.0.*.k_proj", "*.layers.1.*.up_proj"]))
    exported = CompressedTensors().run(tmp_path / "artifact", tmp_path / "export")
    change = exported.changes[0]
    assert (change.what, "q_proj" in change.where, "gate_proj" in change.where) == ("W8A8S -> FLOAT", True, True)
    ignored = json.loads((exported.folder / "config.json").read_text())["quantization_config"]["ignore"]
    for name in ("layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj", "layers.1.mlp.gate_proj"):
        assert f"model.{name}" in ignored


def test_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    written(tmp_path / "artifact", W8A8S())
    whole = CompressedTensors().run(tmp_path / "artifact", tmp_path / "whole").folder
    parts = CompressedTensors(shard_gb=5e-5).run(tmp_path / "artifact", tmp_path / "parts").folder
    names = sorted(file.name for file in parts.glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (whole, parts))
    assert len(names) > 2
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_weights_alone_are_float_where_asked_for(tmp_path: Path) -> None:
    model = written(tmp_path / "artifact", W8A16())
    exported = CompressedTensors(weights_alone="float").run(tmp_path / "artifact", tmp_path / "export")
    assert exported.changes[0].what == "W8A16 -> FLOAT"
    state = AutoModelForCausalLM.from_pretrained(exported.folder).state_dict()
    for name, ours in linears(model).items():
        assert torch.equal(state[f"{name}.weight"], ours.floats()[0]), name
    with pytest.raises(ValueError, match="weights_alone=int4 is not known; allowed: int8, float"):
        CompressedTensors(weights_alone="int4")
