"""What Calibrator refuses, and what it says."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from slimrun.msmodelslim import npy
from slimrun.msmodelslim.pytorch import Calibrator, QuantConfig
from slimrun.ops.format.linear import Int8Linear

from ..conftest import tiny
from .test_calibrator import CO_SPARSE, SAMPLES, calibrated


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
    outputs = compiled(ids).detach()
    assert 0 < float((outputs - expected).norm() / expected.norm()) < 0.05
    inside = Towers()
    inside.first.compile(backend="eager")
    Calibrator(inside, QuantConfig(mm_tensor=False), [SAMPLES[0]]).run()
    assert isinstance(inside.first, Int8Linear)
