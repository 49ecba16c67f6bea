"""msModelSlim's AntiOutlier: its checks, and that a smoothed model computes the same and quantizes better."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from slimrun.msmodelslim.anti_outlier import AntiOutlier, AntiOutlierConfig
from slimrun.msmodelslim.pytorch import Calibrator, QuantConfig

from ..conftest import tiny

IDS = torch.arange(3, 40).unsqueeze(0)
SAMPLES: list[Any] = [[IDS], {"input_ids": torch.arange(100, 140).unsqueeze(0)}]
HEAVY = 40  # how much one channel of each norm is larger than the others


def heavy() -> nn.Module:
    """A LLaMA with an outlier in each of its norms, of which the embeddings know nothing."""
    model: nn.Module = tiny(tie_word_embeddings=False).module
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("layernorm"):
                module.weight[7] = HEAVY
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(input_ids=IDS).logits
    return output


def quantization_error(method: str | None) -> float:
    model = heavy()
    before = logits(model)
    if method:
        AntiOutlier(model, SAMPLES, AntiOutlierConfig(anti_method=method)).process()
    Calibrator(model, QuantConfig(mm_tensor=False), SAMPLES).run()
    return float((logits(model) - before).norm() / before.norm())


@pytest.mark.parametrize("method", ["m1", "m2", "m4"])
def test_the_float_function_stays(method: str, caplog: pytest.LogCaptureFixture) -> None:
    model = heavy()
    before, weight = logits(model), model.get_submodule("model.layers.0.mlp.up_proj").weight.clone()
    AntiOutlier(model, SAMPLES, AntiOutlierConfig(anti_method=method), norm_class_name="llamarmsnorm").process()
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    assert not torch.equal(model.get_submodule("model.layers.0.mlp.up_proj").weight, weight)
    biases = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
    assert bool(biases) is (method == "m2"), "only a shift needs them"
    assert ("norms alone are smoothed" in caplog.text) is (method == "m4")


def test_a_smoothed_model_quantizes_better() -> None:
    plain = quantization_error(None)
    for method in ("m1", "m2"):
        assert quantization_error(method) < 0.8 * plain, method


def test_the_norms_are_saved(tmp_path: Path) -> None:
    model = heavy()
    AntiOutlier(model, SAMPLES).process()
    calibrator = Calibrator(model, QuantConfig(mm_tensor=False), SAMPLES)
    calibrator.run()
    calibrator.save(str(tmp_path), save_type=["numpy", "safe_tensor"])
    assert (tmp_path / "anti_fp_norm.npy").is_file()
    tensors = load_file(tmp_path / "quant_model_weight_w8a8.safetensors")
    types = json.loads((tmp_path / "quant_model_description_w8a8.json").read_text())
    norm = "model.layers.1.input_layernorm"
    assert torch.equal(tensors[f"{norm}.bias"], tensors[f"{norm}.module.bias"])
    assert types[f"{norm}.bias"] == "FLOAT"


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"anti_method": "m3"}, ValueError, "anti_method = m3 (AWQ) is not built; allowed: m1, m2, m4."),
        ({"anti_method": "m5"}, ValueError, "anti_method = m5 (CBQ) is not built"),
        ({"anti_method": "m6", "flex_config": {}}, ValueError, "anti_method = m6 (flex smooth) is not built"),
        ({"anti_method": "m7"}, ValueError, "anti_method = m7 is invalid; allowed: m1, m2, m4."),
        ({"a_bit": 16}, ValueError, "a_bit = 16 is invalid with anti_method m2; allowed: 8."),
        ({"w_bit": 16}, ValueError, "w_bit = 16 is invalid with anti_method m2; allowed: 8, 4."),
        ({"w_sym": False}, ValueError, "w_sym = False is invalid with anti_method m2; allowed: True."),
        ({"dev_type": "tpu"}, ValueError, "Device type must be in choices [cpu, npu, gpu]"),
        ({"disable_anti_names": ["a"]}, ValueError, "disable_anti_names is not built"),
        ({"w_bit": 8.0}, TypeError, "w_bit must be int, not float."),
    ],
    ids=str,
)
def test_wrong_keywords(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        AntiOutlierConfig(**keywords)


def test_checks() -> None:
    model = tiny().module
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"model": None}, TypeError, "model must be Module, not NoneType."),
        ({"cfg": {}}, TypeError, "cfg must be AntiOutlierConfig, not dict."),
        ({"calib_data": ()}, TypeError, "calib_data must be list, not tuple."),
        ({"calib_data": ["x"]}, TypeError, "calib_data[0] must be list or dict, not str."),
        ({"calib_data": None}, ValueError, "AntiOutlier does not support Data-Free: calib_data is empty."),
        (
            {"norm_class_name": "RMS"},
            ValueError,
            "norm_class_name = RMS is no norm of the model; allowed: LlamaRMSNorm",
        ),
    ]
    for change, error, message in cases:
        with pytest.raises(error, match=re.escape(message)):
            AntiOutlier(**{"model": model, "cfg": AntiOutlierConfig(), "calib_data": SAMPLES, **change})
    with pytest.raises(ValueError, match="calibration sample 0: "):
        AntiOutlier(model, [[torch.ones(3, 4, 5, dtype=torch.long)]]).process()
