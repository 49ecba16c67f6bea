"""msModelSlim's Calibrator: its checks, and every kind of file that save() leaves."""

from __future__ import annotations

import json
import logging
import os
import re
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
from transformers import AutoModel, AutoModelForCausalLM

from slimrun.msmodelslim import npy
from slimrun.msmodelslim.pytorch import Calibrator, QuantConfig
from slimrun.ops.format.linear import Int8Linear

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
    found = modes(tmp_path)
    shards = sorted(name for name in found if name.endswith(".safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"quant_model_weight_w8a8s-00001-of-{len(shards):05d}.safetensors"
    assert {found[shard] for shard in shards} == {0o400}
    index = json.loads((tmp_path / "quant_model_weight_w8a8s.safetensors.index.json").read_text())
    described = json.loads((tmp_path / "quant_model_description.json").read_text())
    assert described["version"] == "1.0.0"
    assert index["weight_map"].keys() == described.keys() - {"version", "model_quant_type"}
    merged = {key: value for shard in shards for key, value in load_file(tmp_path / shard).items()}
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)

    calibrator.save(str(tmp_path), save_type="safe_tensor")  # over read-only files, now in one piece
    assert modes(tmp_path) == {
        "mine.txt": found["mine.txt"],
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

    monkeypatch.setattr("slimrun.msmodelslim.files.save_file", fails)
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
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert found.returncode != 0
    assert "Permission denied" in found.stderr
    assert str(locked / "q") in found.stderr
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


def test_checks() -> None:
    model, config = tiny().module, QuantConfig(**CO_SPARSE)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"model": None}, TypeError, "model must be Module, not NoneType."),
        ({"cfg": {}}, TypeError, "cfg must be QuantConfig, not dict."),
        ({"calib_data": ()}, TypeError, "calib_data must be list, not tuple."),
        ({"calib_data": ["x"]}, TypeError, "calib_data[0] must be list or dict, not str."),
        ({"calib_data": None}, ValueError, "W8A8S does not support Data-Free: calib_data is empty."),
        ({"disable_level": "L01"}, ValueError, "Please check the `disable_level` configuration: 'L01'"),
        ({"disable_level": "L14"}, ValueError, "disable_level = L14 keeps all 14 linears float and leaves nothing to"),
        ({"disable_level": 1}, ValueError, "Please check the `disable_level` configuration: 1"),
        ({"mix_cfg": {"a": "w8a8"}}, ValueError, "mix_cfg is not built"),
        ({"model": nn.ReLU()}, ValueError, "No nn.Linear found in the model"),
        (
            {"cfg": QuantConfig(**CO_SPARSE, disable_names=["model.layers.0.self_attn.qproj"])},
            ValueError,
            "`disable_names` has invalid key `model.layers.0.self_attn.qproj`, please check your model "
            "configurations; near it: model.layers.0.self_attn.q_proj",
        ),
        ({"cfg": QuantConfig(**CO_SPARSE, dev_type="npu")}, ModuleNotFoundError, "dev_type = npu needs the package"),
    ]
    for change, error, message in cases:
        with pytest.raises(error, match=re.escape(message)):
            Calibrator(**{"model": model, "cfg": config, "calib_data": SAMPLES, **change})


def test_a_model_without_its_output_layer_is_named_with_the_class_to_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny().module.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    wanted = (
        "model is LlamaModel, which lacks the output layer and the prefix of the names in the files of "
        "LlamaForCausalLM: load it with AutoModelForCausalLM"
    )
    with pytest.raises(ValueError, match=f"invalid key `model.layers.0.mlp.down_proj`.*; {wanted}"):
        Calibrator(model, QuantConfig(**CO_SPARSE, disable_names=["model.layers.0.mlp.down_proj"]), SAMPLES)
    Calibrator(model, QuantConfig(**CO_SPARSE), SAMPLES)
    assert wanted in caplog.text
    caplog.clear()
    Calibrator(AutoModelForCausalLM.from_pretrained(tmp_path), QuantConfig(**CO_SPARSE), SAMPLES)
    assert "output layer" not in caplog.text


def test_a_script_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    calibrated(CO_SPARSE, level="L2")
    said = capsys.readouterr()
    bits = re.search(r"12 linears quantized, [\d,]+ weights of (\d\.\d\d) bits", said.err)
    assert bits
    assert 3 < float(bits.group(1)) < 5
    assert "3 kept float" in said.err, "the last linear too"
    assert not said.out


def test_run_and_save_check_their_arguments(tmp_path: Path) -> None:
    calibrator = Calibrator(tiny().module, QuantConfig(**CO_SPARSE), SAMPLES)
    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((1,), {}, TypeError, "output_path must be str, not int."),
        ((), {"save_type": ["onnx"]}, ValueError, "save_type = onnx is invalid; allowed: numpy, safe_tensor, ascendV1"),
        ((), {"save_type": []}, ValueError, "save_type is empty; allowed: numpy, safe_tensor, ascendV1"),
        ((), {"part_file_size": 0}, ValueError, "part_file_size = 0 is smaller than 1."),
        ((), {"part_file_size": 1.5}, TypeError, "part_file_size must be int, not float."),
        ((), {"safetensors_name": "../x.safetensors"}, ValueError, "safetensors_name = '../x.safetensors' is invalid"),
        (
            (),
            {"json_name": "x.txt"},
            ValueError,
            "json_name = 'x.txt' is invalid; allowed: the name of a file that ends",
        ),
        ((), {}, ValueError, "save() needs a quantized model: call run() first."),
    ]
    for arguments, keywords, error, message in cases:
        with pytest.raises(error, match=re.escape(message)):
            calibrator.save(*(arguments or (str(tmp_path / "q"),)), **keywords)
    with pytest.raises(TypeError, match="int_infer must be bool, not int"):
        calibrator.run(1)  # type: ignore[arg-type]
    assert not (tmp_path / "q").exists()


def test_a_sample_of_the_wrong_shape_is_named() -> None:
    samples = [*SAMPLES, [torch.ones(3, 4, 5, dtype=torch.long)]]
    with pytest.raises(ValueError, match=r"calibration sample 2: model\(\*sample\) fails"):
        Calibrator(tiny().module, QuantConfig(**CO_SPARSE), samples).run()


def test_the_constructor_does_no_work_and_another_device_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny().module
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        Calibrator(model, QuantConfig(**CO_SPARSE, dev_type="gpu"), SAMPLES)
    assert "dev_type=gpu, but the model is on cpu" in caplog.text
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Towers(nn.Module):
    """The second tower is asked for pictures alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 16)
        self.first, self.second, self.last = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, ids: torch.Tensor, picture: bool = False) -> torch.Tensor:
        x = self.embed(ids)
        return self.last(self.second(x) if picture else self.first(x))


def test_a_linear_that_no_sample_reaches_is_saved_float_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calibrator = Calibrator(Towers(), QuantConfig(**CO_SPARSE), [SAMPLES[0]])
    calibrator.run()
    assert "1 linear (second): kept float, because no calibration sample reached it" in caplog.text
    calibrator.save(str(tmp_path), save_type=["numpy", "safe_tensor"])
    assert npy.load(tmp_path / "quant_weight.npy").keys() == {"first"}
    tensors = load_file(tmp_path / "quant_model_weight_w8a8s.safetensors")
    types = json.loads((tmp_path / "quant_model_description_w8a8s.json").read_text())
    assert types["second.weight"] == "FLOAT"
    assert torch.equal(tensors["second.weight"], calibrator.model.second.weight)
    with pytest.raises(ValueError, match="quantized already: 1 linear"):
        Calibrator(calibrator.model, QuantConfig(**CO_SPARSE), [SAMPLES[0]])


def test_nothing_to_quantize_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"Nothing is left to quantize: .* keep every nn.Linear of the model float"):
        Calibrator(Towers(), QuantConfig(disable_names=["first", "second"], **CO_SPARSE), [SAMPLES[0]])
    Calibrator(nn.Embedding(4, 4), QuantConfig(w_bit=16, a_bit=16)).run()


def test_a_compiled_model_is_quantized_like_its_own() -> None:
    compiled = torch.compile(Towers(), backend="eager")
    ids = SAMPLES[0][0]
    expected = compiled(ids).detach()
    calibrator = Calibrator(compiled, QuantConfig(mm_tensor=False), [SAMPLES[0]])
    calibrator.run()
    assert calibrator._tensors["first.weight"].dtype == torch.int8
    found = compiled(ids).detach()
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.05
    inside = Towers()
    inside.first.compile(backend="eager")
    Calibrator(inside, QuantConfig(mm_tensor=False), [SAMPLES[0]]).run()
    assert isinstance(inside.first, Int8Linear)
