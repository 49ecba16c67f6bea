"""What Calibrator.save leaves goes through Compressor into a folder that loads as the model it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slimrun.msmodelslim.pytorch import Calibrator, QuantConfig
from slimrun.msmodelslim.restore import read_safetensors, verify
from slimrun.msmodelslim.weight_compression import CompressConfig, Compressor
from slimrun.ops import load_bundle
from slimrun.ops.compress.none import NoCompression
from slimrun.ops.export.compressed_tensors import CompressedTensors
from slimrun.ops.quant.w8a8s import W8A8S

from ..conftest import tiny
from ..export.bundles import write
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


def test_what_a_script_saves_is_exported_and_loaded(tmp_path: Path) -> None:
    model = tiny()
    calibrator = Calibrator(model.module, QuantConfig(w_bit=4, co_sparse=True), SAMPLES)
    calibrator.run()
    saved = tmp_path / "saved"
    calibrator.save(str(saved), save_type="safe_tensor")
    model.save_description(saved)  # config.json and the tokenizer, which the script's model came with
    assert load_bundle(saved).logits_checksum() == model.logits_checksum()
    exported = load_file(CompressedTensors().run(saved, tmp_path / "export").folder / "model.safetensors")
    for name in model.quantized():
        assert torch.equal(exported[f"{name}.weight"], model.module.get_submodule(name).weight)


def test_what_a_run_writes_is_compressed_by_a_script_and_loaded(tmp_path: Path) -> None:
    model = write(tmp_path / "artifact", tiny(), W8A8S(), NoCompression())
    weights = load_file(tmp_path / "artifact/quant_model_weight_w8a8s.safetensors")
    description = json.loads((tmp_path / "artifact/quant_model_description_w8a8s.json").read_text())
    compressor = Compressor(CompressConfig(), weight=weights, quant_model_description=description)
    compressor.run()
    compressor.export_safetensors(tmp_path / "compressed")
    verify({f"{name}.weight": weights[f"{name}.weight"] for name in model.quantized()},
           read_safetensors(tmp_path / "compressed"))  # fmt: skip
    model.save_description(tmp_path / "compressed")
    assert load_bundle(tmp_path / "compressed").logits_checksum() == model.logits_checksum()
