"""What Calibrator.save leaves goes through Compressor into a folder that loads as the model it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from slimrun.msmodelslim.pytorch import Calibrator, QuantConfig
from slimrun.msmodelslim.restore import read_safetensors, verify
from slimrun.msmodelslim.weight_compression import CompressConfig, Compressor
from slimrun.ops import load_bundle

from ..conftest import tiny
from .test_calibrator import SAMPLES

UNCODED = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("keywords", "quant_type"),
    [
        ({"w_bit": 4, "co_sparse": True, "mm_tensor": False, "act_method": 3}, "W8A8S"),
        ({"w_bit": 4, "is_lowbit": True, "do_smooth": True}, "W8A8S"),
        ({"mm_tensor": False}, "W8A8"),
        ({"is_dynamic": True}, "W8A8_DYNAMIC"),
        ({"a_bit": 16}, "W8A16"),
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False])
def test_save_compress_load(tmp_path: Path, keywords: dict[str, Any], quant_type: str, tied: bool) -> None:
    model = tiny(tie_word_embeddings=tied, attention_bias=True)
    calibrator = Calibrator(model.module, QuantConfig(**keywords), SAMPLES, disable_level="L2")
    calibrator.run()
    calibrator.save(str(tmp_path / "saved"), save_type="safe_tensor")
    stem = quant_type.lower()
    weights = load_file(tmp_path / "saved" / f"quant_model_weight_{stem}.safetensors")
    description = json.loads((tmp_path / "saved" / f"quant_model_description_{stem}.json").read_text())

    config = CompressConfig(compress_disable_layers=[UNCODED])
    compressor = Compressor(config, weight=weights, quant_model_description=description)
    compressor.run()
    bundle = tmp_path / "compressed"
    compressor.export_safetensors(bundle)
    restored = read_safetensors(bundle)
    assert len(restored) == 12
    assert UNCODED in restored
    verify({key: weights[key] for key in restored}, restored)
    types = json.loads((bundle / f"quant_model_description_{stem}c.json").read_text())
    assert types["model_quant_type"] == types[UNCODED] == f"{quant_type}C"
    assert types["container"] == {"name": "slimrun-nz", "version": 1}

    model.save_description(bundle)
    assert load_bundle(bundle).logits_checksum() == model.logits_checksum()
