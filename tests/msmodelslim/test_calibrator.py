"""msModelSlim's Calibrator: its checks, and every kind of file that save() leaves."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from slimrun.msmodelslim import npy
from slimrun.msmodelslim.pytorch import Calibrator, QuantConfig

from ..conftest import tiny

SAMPLES = [[torch.arange(3, 30).unsqueeze(0)], {"input_ids": torch.arange(60, 99).unsqueeze(0)}]
CO_SPARSE = {"w_bit": 4, "co_sparse": True, "mm_tensor": False}
LOWBIT = {"w_bit": 4, "is_lowbit": True, "mm_tensor": False}
KV = "model.layers.0.self_attn.k_proj"  # of a tiny LLaMA: 32 x 64


def calibrated(keywords: dict[str, Any], dtype: str = "float32", level: str = "L0", **changes: Any) -> Calibrator:
    calibrator = Calibrator(tiny(dtype, **changes).module, QuantConfig(**keywords), SAMPLES, disable_level=level)
    calibrator.run()
    return calibrator


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bias", [True, False])
def test_w8a8s_dtypes_and_shapes(tmp_path: Path, dtype: str, bias: bool) -> None:
    calibrated(CO_SPARSE, dtype, attention_bias=bias).save(str(tmp_path / "q"), save_type="safe_tensor")
    kind = getattr(torch, dtype)
    tensors = load_file(tmp_path / "q" / "quant_model_weight_w8a8s.safetensors")
    own = {key.removeprefix(f"{KV}."): value for key, value in tensors.items() if key.startswith(KV)}
    expected = {
        "weight": (torch.int8, (32, 64)),
        "input_scale": (kind, (1,)),
        "input_offset": (kind, (1,)),
        "quant_bias": (torch.int32, (32,)),
        "deq_scale": (torch.float32 if dtype == "bfloat16" else torch.int64, (32,)),
    }
    assert {key: (value.dtype, tuple(value.shape)) for key, value in own.items()} == expected | (
        {"bias": (kind, (32,))} if bias else {}
    )
    assert "lm_head.weight" not in tensors  # tied to the embedding, stored once
    types = json.loads((tmp_path / "q" / "quant_model_description_w8a8s.json").read_text())
    assert types.pop("model_quant_type") == "W8A8S"
    assert types.keys() == tensors.keys()
    assert types[f"{KV}.deq_scale"] == "W8A8S"
    assert types["model.embed_tokens.weight"] == "FLOAT"
    assert types.get(f"{KV}.bias", "FLOAT") == "FLOAT"


@pytest.mark.parametrize(
    ("keywords", "quant_type", "suffixes"),
    [
        ({"mm_tensor": False}, "W8A8", {"input_scale", "input_offset", "quant_bias", "deq_scale"}),
        ({"is_dynamic": True, "mm_tensor": False}, "W8A8_DYNAMIC", set()),
        ({"a_bit": 16, "mm_tensor": False}, "W8A16", set()),
    ],
)
def test_formats_with_weight_scale(
    tmp_path: Path, keywords: dict[str, Any], quant_type: str, suffixes: set[str]
) -> None:
    calibrated(keywords, "float16").save(str(tmp_path), save_type=["safe_tensor"])
    tensors = load_file(tmp_path / f"quant_model_weight_{quant_type.lower()}.safetensors")
    own = {key.removeprefix(f"{KV}."): value for key, value in tensors.items() if key.startswith(KV)}
    assert own.keys() == suffixes | {"weight", "weight_scale", "weight_offset"}
    assert own["weight_scale"].shape == (32, 1)
    assert own["weight_scale"].dtype == own["weight_offset"].dtype == torch.float16
    assert not own["weight_offset"].any()


@pytest.mark.parametrize("keywords", [CO_SPARSE, LOWBIT, {"is_dynamic": True}], ids=str)
def test_numpy_files(tmp_path: Path, keywords: dict[str, Any]) -> None:
    calibrator = calibrated(keywords, attention_bias=True)
    calibrator.save(str(tmp_path / "q"))
    sparse = "is_dynamic" not in keywords
    names = ["deq_scale", "input_offset", "input_scale", "quant_bias"] if sparse else ["weight_offset", "weight_scale"]
    assert modes(tmp_path / "q") == {f"{name}.npy": 0o400 for name in [*names, "quant_weight"]}
    assert stat.S_IMODE((tmp_path / "q").stat().st_mode) == 0o750
    weights = npy.load(tmp_path / "q" / "quant_weight.npy")
    linears = {name for name, _ in calibrator.model.named_modules() if name.endswith("_proj")}
    assert weights.keys() == linears
    assert all(value.dtype == torch.int8 and value.ndim == 2 for value in weights.values())
    assert torch.equal(weights[KV], calibrator.model.get_submodule(KV).weight)
    loaded = np.load(tmp_path / "q" / "quant_weight.npy", allow_pickle=True).item()  # what users' scripts do
    assert torch.equal(loaded[KV], weights[KV])


def test_smoothed_norms_are_saved_as_the_original_has_them(tmp_path: Path) -> None:
    calibrator = calibrated({**LOWBIT, "do_smooth": True})
    calibrator.save(str(tmp_path), save_type=["numpy", "safe_tensor"])
    norm = "model.layers.1.input_layernorm"
    norms = npy.load(tmp_path / "anti_fp_norm.npy")
    tensors = load_file(tmp_path / "quant_model_weight_w8a8s.safetensors")
    types = json.loads((tmp_path / "quant_model_description_w8a8s.json").read_text())
    for suffix in ("weight", "bias"):
        for name, kind in ((f"{norm}.{suffix}", "FLOAT"), (f"{norm}.module.{suffix}", "W8A8S")):
            assert torch.equal(norms[name], tensors[name])
            assert types[name] == kind
        assert torch.equal(norms[f"{norm}.{suffix}"], calibrator.model.get_submodule(norm).state_dict()[suffix])
    assert not norms["model.norm.bias"].any()
    assert tensors[f"{KV}.bias"].shape == (32,)


@pytest.mark.parametrize("keywords", [CO_SPARSE, LOWBIT], ids=str)
def test_fallen_back_layers_are_saved_as_float(tmp_path: Path, keywords: dict[str, Any]) -> None:
    calibrator = calibrated(keywords, level="L3")
    calibrator.save(str(tmp_path), save_type="safe_tensor")
    tensors = load_file(tmp_path / "quant_model_weight_w8a8s.safetensors")
    types = json.loads((tmp_path / "quant_model_description_w8a8s.json").read_text())
    weights = {key for key in tensors if key.endswith("_proj.weight")}
    kept = {key for key in weights if tensors[key].dtype == torch.float32}
    assert len(weights) == 14
    assert len(kept) == 3
    assert {types[key] for key in kept} == {"FLOAT"}
    assert all(f"{key.removesuffix('.weight')}.deq_scale" not in tensors for key in kept)


def test_ascend_v1_shards_and_saving_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimrun.msmodelslim.pytorch.GIBIBYTE", 40_000)
    calibrator = calibrated(CO_SPARSE)
    (tmp_path / "mine.txt").write_text("kept")
    calibrator.save(str(tmp_path), save_type=["safe_tensor", "ascendV1"], part_file_size=1)
    files = modes(tmp_path)
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"quant_model_weight_w8a8s-00001-of-{len(shards):05d}.safetensors"
    assert {files[shard] for shard in shards} == {0o400}
    index = json.loads((tmp_path / "quant_model_weight_w8a8s.safetensors.index.json").read_text())
    described = json.loads((tmp_path / "quant_model_description.json").read_text())
    assert described["version"] == "1.0.0"
    assert index["weight_map"].keys() == described.keys() - {"version", "model_quant_type"}
    merged = {key: value for shard in shards for key, value in load_file(tmp_path / shard).items()}
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)

    calibrator.save(str(tmp_path), save_type="safe_tensor")  # over read-only files, now in one piece
    assert modes(tmp_path) == {
        "mine.txt": files["mine.txt"],
        "quant_model_weight_w8a8s.safetensors": 0o400,
        "quant_model_description_w8a8s.json": 0o600,
        "quant_model_description.json": 0o600,
    }
    whole = load_file(tmp_path / "quant_model_weight_w8a8s.safetensors")
    assert whole.keys() == merged.keys()
    assert all(torch.equal(whole[key], merged[key]) for key in whole)


def test_a_failing_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrator = calibrated(CO_SPARSE)
    calibrator.save(str(tmp_path), save_type="safe_tensor")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slimrun.msmodelslim.saving.save_file", fails)
    with pytest.raises(OSError, match="No space left"):
        calibrator.save(str(tmp_path), save_type=["numpy", "safe_tensor"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_without_write_permission_is_named(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    script = (
        "from tests.msmodelslim.test_calibrator import calibrated, CO_SPARSE\n"
        f"calibrated(CO_SPARSE).save({str(locked / 'q')!r})"
    )
    command = [sys.executable, "-c", script]
    if os.geteuid() == 0:  # root writes anywhere, unless it gives that up
        if shutil.which("setpriv") is None:
            pytest.skip("root, and no setpriv to give up its rights")
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command]
    process = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert process.returncode != 0
    assert "Permission denied" in process.stderr
    assert str(locked / "q") in process.stderr
    assert not any(locked.iterdir())


def test_half_precision_zero_rows_and_dead_inputs_stay_finite(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 8, dtype=torch.float16), nn.Linear(8, 4, dtype=torch.float16))
    model[0].weight.data[3] = 0
    config = QuantConfig(**CO_SPARSE, disable_last_linear=False)
    calibrator = Calibrator(model, config, [[torch.zeros(2, 16, dtype=torch.float16)]])
    calibrator.run()
    calibrator.save(str(tmp_path), save_type="safe_tensor")
    tensors = load_file(tmp_path / "quant_model_weight_w8a8s.safetensors")
    assert not tensors["0.weight"][3].any()
    assert (tensors["0.deq_scale"] > 0).all()
    assert torch.isfinite(model(torch.randn(2, 16).half())).all()
