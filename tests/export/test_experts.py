"""Experts of a mixture in other engines' files: the names and types that their loaders look for, the integers ours.

The names are those of the loaders' code: vLLM 0.32 (fused_moe, compressed_tensors_moe), vllm-ascend of August 2026
(packed_modules_model_mapping, the registry of "moe", mla_v1), transformers 5.24 (conversion_mapping).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from slimrun.ops import bundle
from slimrun.ops.export import targets
from slimrun.ops.export.ascend import Ascend
from slimrun.ops.export.compressed_tensors import CompressedTensors
from slimrun.ops.export.vllm_ascend import VllmAscend
from slimrun.ops.export.vllm_ascend_310p import VllmAscend310P
from slimrun.ops.format.linear import QuantizedLinear
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.quant.w8a16 import W8A16

from ..framework.architectures import MIXTURES
from .bundles import written

compressed_tensors = pytest.importorskip("compressed_tensors")

OURS = ("gate_proj", "up_proj", "down_proj")
FILES = {  # model_type -> (where a file has the experts of a layer, and their projections in the order of OURS)
    "mixtral": ("model.layers.{}.block_sparse_moe.experts", ("w1", "w3", "w2")),
    "qwen2_moe": ("model.layers.{}.mlp.experts", OURS),
    "qwen3_moe": ("model.layers.{}.mlp.experts", OURS),
    "deepseek_v3": ("model.layers.{}.mlp.experts", OURS),
}


def mixture(folder: Path, kind: str, quantizer: Quantizer, dtype: str = "float32") -> TorchModel:
    """The quantized model whose bundle lies in the folder."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return written(folder, quantizer, dtype, model_type=kind, **heads | MIXTURES[kind])


def read(folder: Path) -> dict[str, Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


def experts(model: TorchModel) -> dict[str, dict[str, QuantizedLinear]]:
    """layer.expert -> its linears."""
    linears: dict[str, dict[str, Any]] = {}
    for name in model.quantized():
        if ".experts." in name:
            _, _, layer, _, _, number, projection = name.split(".")
            linears.setdefault(f"{layer}.{number}", {})[projection] = model.module.get_submodule(name)
    return linears


@pytest.mark.parametrize("kind", FILES)
def test_vllm_finds_every_expert_with_a_step_a_token(tmp_path: Path, kind: str) -> None:
    model = mixture(tmp_path / "artifact", kind, W8A8S())
    exported = CompressedTensors().run(tmp_path / "artifact", tmp_path / "export")
    assert any(change.what == "W8A8S -> W8A8_DYNAMIC" for change in exported.changes)
    tensors = read(exported.folder)
    where, names = FILES[kind]
    quantization = json.loads((exported.folder / "config.json").read_text())["quantization_config"]
    for place, linears in experts(model).items():
        layer, number = place.split(".")
        for ours, theirs in zip(OURS, names):
            name = f"{where.format(layer)}.{number}.{theirs}"
            assert torch.equal(tensors[f"{name}.weight"], linears[ours].weight)
            assert tensors[f"{name}.weight_scale"].shape == (linears[ours].out_features, 1)
            assert f"{name}.input_scale" not in tensors
        asked = [f"{where.format(layer)}.0.{ours}" for ours in OURS]  # whatever the files call them
        assert [scheme_of(name, quantization) for name in asked] == ["token"] * 3
    assert len(experts(model)) >= 8


def test_deepseeks_routing_is_told(tmp_path: Path) -> None:
    mixture(tmp_path / "artifact", "deepseek_v3", W8A8Dynamic())
    folder = CompressedTensors().run(tmp_path / "artifact", tmp_path / "export").folder
    config = json.loads((folder / "config.json").read_text())
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")  # vLLM's default is softmax


def scheme_of(name: str, quantization: dict[str, Any]) -> str | None:
    """How a linear takes its inputs, by the package's own rules; None for one that is ignored."""
    from compressed_tensors.utils.match import is_match

    linear = nn.Linear(1, 1)
    if is_match(name, linear, quantization["ignore"]):
        return None
    [group] = [one for one in quantization["config_groups"].values() if is_match(name, linear, one["targets"])]
    return str((group["input_activations"] or {}).get("strategy"))


@pytest.mark.parametrize("kind", FILES)
def test_transformers_reads_experts_with_float_inputs(tmp_path: Path, kind: str) -> None:
    model = mixture(tmp_path / "artifact", kind, W8A16())
    folder = CompressedTensors().run(tmp_path / "artifact", tmp_path / "export").folder
    loaded = CompressedTensors().load(folder)
    for place, linears in experts(model).items():
        layer, number = place.split(".")
        stacks = loaded.model.layers[int(layer)].mlp.experts
        gate, up, down = (linears[name].floats()[0] for name in OURS)
        torch.testing.assert_close(stacks.gate_up_proj[int(number)], torch.cat((gate, up)))
        torch.testing.assert_close(stacks.down_proj[int(number)], down)
    ids = torch.arange(3, 37).reshape(2, 17)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, model.module(ids).logits, rtol=1e-4, atol=1e-4)


def test_what_transformers_does_not_read_is_said(tmp_path: Path) -> None:
    mixture(tmp_path / "artifact", "qwen3_moe", W8A8Dynamic())
    exported = CompressedTensors().run(tmp_path / "artifact", tmp_path / "export")
    assert any(change.what == "not in transformers" for change in exported.changes)
    assert CompressedTensors().load(exported.folder) is None
    with pytest.raises(RuntimeError, match="issues during automatic conversion"):
        AutoModelForCausalLM.from_pretrained(exported.folder)


@pytest.mark.parametrize("engine", [VllmAscend, VllmAscend310P])
@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3"])
def test_ascend_finds_every_expert(tmp_path: Path, kind: str, engine: type[Ascend]) -> None:
    model = mixture(tmp_path / "artifact", kind, W8A8S(), "float16")
    folder = engine().run(tmp_path / "artifact", tmp_path / "export").folder
    types, tensors = json.loads((folder / "quant_model_description.json").read_text()), read(folder)
    step = torch.float32 if engine is VllmAscend310P else torch.float16
    for place, linears in experts(model).items():
        layer, number = place.split(".")
        for projection, ours in linears.items():
            name = f"model.layers.{layer}.mlp.experts.{number}.{projection}"
            own = {
                key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")
            }
            assert own.keys() == {"weight", "weight_scale", "weight_offset"}
            assert {types[f"{name}.{suffix}"] for suffix in own} == {"W8A8_DYNAMIC"}
            assert torch.equal(own["weight"], ours.weight)
            assert own["weight_scale"].dtype == step
            assert not own["weight_offset"].any()
    assert {types[key] for key in types if key.endswith("mlp.gate.weight")} == {"FLOAT"}
    if kind == "deepseek_v3":
        assert {types[key] for key in types if key.endswith("kv_b_proj.weight")} == {"FLOAT"}
        for layer in range(2):
            fused = {
                types[f"model.layers.{layer}.self_attn.{name}.weight"] for name in ("q_a_proj", "kv_a_proj_with_mqa")
            }
            assert len(fused) == 1


def test_experts_of_a_layer_are_of_one_type(tmp_path: Path) -> None:
    ignored = "model.layers.1.mlp.experts.2.up_proj"
    mixture(tmp_path / "artifact", "mixtral", W8A16(ignore=[ignored]))
    exported = CompressedTensors().run(tmp_path / "artifact", tmp_path / "export")
    quantization = json.loads((exported.folder / "config.json").read_text())["quantization_config"]
    assert [
        scheme_of(f"model.layers.{layer}.block_sparse_moe.experts.0.up_proj", quantization) for layer in range(2)
    ] == [
        "None",
        None,
    ]
    assert ("W8A16 -> FLOAT", "the experts of a layer must have one type") in [
        (change.what, change.why) for change in exported.changes
    ]


@pytest.mark.parametrize("name", [name for name in targets() if name != "ckpt"])
@pytest.mark.parametrize("kind", ["gpt_oss", "granitemoe"])
def test_experts_that_an_engine_names_otherwise_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    mixture(tmp_path / "artifact", kind, W8A8S(), "float16")
    with pytest.raises(ValueError, match=rf"config\.json: model_type={kind}.* allowed: "):
        targets()[name]().run(tmp_path / "artifact", tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert bundle.read(tmp_path / "artifact").types


def test_a_mixture_is_refused_by_its_config_alone() -> None:
    with pytest.raises(
        ValueError, match=r"vllm-ascend is not written for its experts.* allowed: .*qwen3_moe, deepseek_v3"
    ):
        VllmAscend().check({"model_type": "mixtral", "num_local_experts": 8, "dtype": "float16"})
    VllmAscend().check({"model_type": "llama", "num_experts": None, "dtype": "float16"})
