"""The files of Ascend's engines: names, types and shapes as their loaders want them, and no number read as another.

The tables are those of the loaders' code (vllm-ascend of August 2026, MindIE-LLM of April 2026); no NPU was at hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slimrun.ops.export.ascend import Ascend
from slimrun.ops.export.mindie import MindIE
from slimrun.ops.export.vllm_ascend import VllmAscend
from slimrun.ops.export.vllm_ascend_310p import VllmAscend310P
from slimrun.ops.format.linear import Int8Linear
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.rdoq import RDOQ, Fallback
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.quant.w8a16 import W8A16

from .bundles import written

ENGINES = {"a2": VllmAscend, "310p": VllmAscend310P, "mindie": MindIE}
NAME = "model.layers.0.mlp.up_proj"
ROWS, COLUMNS = 128, 64
STATIC = {
    "weight": (torch.int8, (ROWS, COLUMNS)),
    "input_scale": ("model", (1,)),
    "input_offset": (torch.int8, (1,)),
    "quant_bias": (torch.int32, (ROWS,)),
    "deq_scale": ("deq", (ROWS,)),
}
STEP = {"weight_scale": ("model", (ROWS, 1)), "weight_offset": ("model", (ROWS, 1))}
WEIGHT = {"weight": (torch.int8, (ROWS, COLUMNS))}
FLOAT32_STEP = {"weight_scale": (torch.float32, (ROWS, 1)), "weight_offset": (torch.float32, (ROWS, 1))}
FLOAT = {"weight": ("model", (ROWS, COLUMNS))}
TABLE = {  # (method, engine) -> (type, tensors)
    ("w8a8", "a2"): ("W8A8", STATIC | STEP),
    ("w8a8", "310p"): ("W8A8", STATIC | STEP),
    ("w8a8", "mindie"): ("W8A8", STATIC | STEP),
    ("w8a8s", "a2"): ("W8A8", STATIC | STEP),
    ("w8a8s", "310p"): ("W8A8S", STATIC),
    ("w8a8s", "mindie"): ("W8A8S", STATIC),
    ("w8a8_dynamic", "a2"): ("W8A8_DYNAMIC", WEIGHT | STEP),
    ("w8a8_dynamic", "310p"): ("W8A8_DYNAMIC", WEIGHT | FLOAT32_STEP),
    ("w8a8_dynamic", "mindie"): ("W8A8_DYNAMIC", WEIGHT | STEP),
    ("w8a16", "a2"): ("W8A16", WEIGHT | STEP),
    ("w8a16", "310p"): ("FLOAT", FLOAT),
    ("w8a16", "mindie"): ("W8A16", WEIGHT | STEP),
}
METHODS: dict[str, Quantizer] = {
    "w8a8": W8A8(per_channel=False),
    "w8a8s": W8A8S(),
    "w8a8_dynamic": W8A8Dynamic(),
    "w8a16": W8A16(),
}


def read(folder: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return json.loads((folder / "quant_model_description.json").read_text()), tensors


def cases() -> Iterator[tuple[str, str, str, bool]]:
    for method, engine in TABLE:
        for dtype in ("float16", "bfloat16"):
            if engine != "310p" or dtype == "float16":
                yield method, engine, dtype, True
                yield method, engine, dtype, False


@pytest.mark.parametrize(("method", "engine", "dtype", "tied"), cases())
def test_tensors_are_what_the_loader_wants(tmp_path: Path, method: str, engine: str, dtype: str, tied: bool) -> None:
    model = written(tmp_path / "artifact", METHODS[method], dtype, tie_word_embeddings=tied)
    folder = ENGINES[engine]().run(tmp_path / "artifact", tmp_path / "export").folder
    types, tensors = read(folder)
    kind, expected = TABLE[method, engine]
    names = {
        "model": getattr(torch, dtype),
        "deq": torch.float32 if dtype == "bfloat16" else torch.int64,
    }
    held = {
        key.removeprefix(f"{NAME}."): (tensor.dtype, tuple(tensor.shape))
        for key, tensor in tensors.items()
        if NAME in key
    }
    assert held == {suffix: (names.get(str(wanted), wanted), shape) for suffix, (wanted, shape) in expected.items()}
    assert {types[f"{NAME}.{suffix}"] for suffix in held} == {kind}
    assert types["lm_head.weight"] == "FLOAT"
    assert ("lm_head.weight" in tensors) is not tied
    assert types.keys() - {"version", "model_quant_type"} == tensors.keys() | {"lm_head.weight"}
    assert types["model_quant_type"] == kind
    assert not any(str(value).endswith("SC") for value in types.values())
    config = json.loads((folder / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == dtype
    assert config["rope_theta"] == 10000.0
    assert config.get("quantize") == (kind.lower() if engine == "mindie" else None)
    ours = model.module.get_submodule(NAME)
    if "deq_scale" in held:
        assert isinstance(ours, Int8Linear)
        deq_scale = tensors[f"{NAME}.deq_scale"]
        bits = deq_scale if deq_scale.dtype == torch.float32 else deq_scale.to(torch.int32).view(torch.float32)
        assert torch.equal(bits, ours.deq_scale.reshape(-1).expand(ROWS))
        assert torch.equal(tensors[f"{NAME}.quant_bias"], ours.quant_bias)
        assert (float(tensors[f"{NAME}.input_scale"]), int(tensors[f"{NAME}.input_offset"])) == (
            ours.grid.scale,
            ours.grid.offset,
        )


@pytest.mark.parametrize(
    ("engine", "dtype", "message"),
    [
        (
            VllmAscend(),
            "float32",
            "dtype=auto keeps the model's float32, which vllm-ascend does not run; give dtype=float16",
        ),
        (MindIE(), "float32", "dtype=auto keeps the model's float32, which mindie does not run; give dtype=float16"),
        (VllmAscend310P(), "bfloat16", "dtype=auto keeps the model's bfloat16, which vllm-ascend-310p does not run"),
    ],
)
def test_a_dtype_that_would_be_garbage_is_refused(tmp_path: Path, engine: Ascend, dtype: str, message: str) -> None:
    written(tmp_path / "artifact", W8A8S(), dtype)
    with pytest.raises(ValueError, match=message):
        engine.run(tmp_path / "artifact", tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_another_dtype_moves_the_grid_and_what_is_folded_for_it(tmp_path: Path) -> None:
    model = written(tmp_path / "artifact", W8A8S(), "float32", attention_bias=True)
    exported = VllmAscend("float16").run(tmp_path / "artifact", tmp_path / "export")
    assert ("float32 -> float16", "all float tensors") in [(change.what, change.where) for change in exported.changes]
    _, tensors = read(exported.folder)
    name = "model.layers.0.self_attn.q_proj"
    ours = model.module.get_submodule(name)
    assert isinstance(ours, Int8Linear)
    scale = float(tensors[f"{name}.input_scale"])
    deq_scale = tensors[f"{name}.deq_scale"].to(torch.int32).view(torch.float32)
    assert scale == float(torch.tensor(ours.grid.scale, dtype=torch.float16))
    torch.testing.assert_close(deq_scale / scale, ours.deq_scale / ours.grid.scale, rtol=2e-7, atol=0)
    correction = -ours.grid.offset * ours.weight.sum(dim=1, dtype=torch.int32)
    bias = (tensors[f"{name}.quant_bias"] - correction) * deq_scale
    torch.testing.assert_close(bias, ours.floats()[1], rtol=0, atol=float(deq_scale.max()))


def test_float_numbers_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    from ..conftest import tiny
    from .bundles import write

    model = tiny()
    model.module.model.norm.weight.data[3] = 1e6
    write(tmp_path / "artifact", model, W8A8S())
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds numbers beyond float16; give another dtype"):
        VllmAscend("float16").run(tmp_path / "artifact", tmp_path / "export")


@pytest.mark.parametrize("ignored", ["*.layers.1.*.v_proj", "*.layers.1.mlp.gate_proj"])
@pytest.mark.parametrize("engine", ENGINES.values())
def test_a_group_with_a_float_linear_is_float(tmp_path: Path, engine: type[Ascend], ignored: str) -> None:
    written(tmp_path / "artifact", W8A8S(ignore=[ignored]), "float16")
    exported = engine().run(tmp_path / "artifact", tmp_path / "export")
    types, _ = read(exported.folder)
    members = (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        if "v_proj" in ignored
        else ("mlp.gate_proj", "mlp.up_proj")
    )
    assert {types[f"model.layers.1.{member}.weight"] for member in members} == {"FLOAT"}
    assert exported.changes[0].what == "W8A8S -> FLOAT"


@pytest.mark.parametrize(
    ("engine", "inputs", "dtype", "left"),
    [
        (VllmAscend, "float", "bfloat16", "W8A16"),
        (VllmAscend310P, "float", "float16", "FLOAT"),
        (MindIE, "float", "bfloat16", "FLOAT"),
        (VllmAscend, "dynamic", "float16", "W8A8_DYNAMIC"),
        (VllmAscend310P, "dynamic", "float16", "W8A8_DYNAMIC"),
        (MindIE, "dynamic", "float16", "FLOAT"),
    ],
)
def test_inputs_without_a_grid_are_what_the_engine_can_hold(
    tmp_path: Path, engine: type[Ascend], inputs: str, dtype: str, left: str
) -> None:
    method = RDOQ(target_bits=3.5, fallback=Fallback(max_share=0.3, inputs=[inputs]))
    written(tmp_path / "artifact", method, dtype, num_hidden_layers=4, tie_word_embeddings=dtype == "float16")
    types, tensors = read(engine().run(tmp_path / "artifact", tmp_path / "export").folder)
    deq_scales = {tensor.dtype for key, tensor in tensors.items() if key.endswith("deq_scale")}
    assert deq_scales == {torch.float32 if dtype == "bfloat16" else torch.int64}
    assert types["lm_head.weight"] == "FLOAT"
    kinds = {kind for key, kind in types.items() if key.endswith("_proj.weight")}
    assert left in kinds
    assert len(kinds) == 2
    for layer in range(4):
        for group in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            assert len({types[f"model.layers.{layer}.{member}.weight"] for member in group}) == 1


def test_scales_chosen_for_the_device_are_exact_there(tmp_path: Path) -> None:
    for chosen, most in ((False, "0.0[3-6]"), (True, "0.00[12]")):
        written(tmp_path / "artifact", W8A8S(reciprocal_scale=chosen), "float16")
        changes = VllmAscend().run(tmp_path / "artifact", tmp_path / "export").changes
        [why] = [change.why for change in changes if change.what == "1 / input_scale is rounded"]
        assert re.search(rf"in float16: up to {most}\d* of a step at 127", why), why


def test_a_quantized_output_layer_is_float_and_no_longer_tied(tmp_path: Path) -> None:
    written(tmp_path / "artifact", W8A8S(ignore_last_linear=False), "float16")
    folder = VllmAscend().run(tmp_path / "artifact", tmp_path / "export").folder
    types, tensors = read(folder)
    assert types["lm_head.weight"] == "FLOAT"
    assert tensors["lm_head.weight"].dtype == torch.float16
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False


def test_norms_that_smoothing_shifted_go_where_they_are_known(tmp_path: Path) -> None:
    model = written(tmp_path / "artifact", Lowbit(do_smooth=True), "float16")
    types, tensors = read(VllmAscend().run(tmp_path / "artifact", tmp_path / "export").folder)
    key = "model.layers.0.input_layernorm.bias"
    assert types[key] == "FLOAT"
    assert torch.equal(tensors[key], model.tensors()[key])
    assert f"{NAME}.bias" not in tensors  # the float model has none; quant_bias holds it
    with pytest.raises(ValueError, match=rf"{key} is no tensor of the float model: smoothing shifts a norm by it"):
        MindIE().run(tmp_path / "artifact", tmp_path / "other")
