"""The examples run as they stand, and the two ways to say one run are one run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from slimrun import load_bundle

from ..runner import console

HERE = Path(__file__).parent


def test_my_module_is_quantized_coded_loaded_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(HERE / "quantize_my_module.py"))
    assert names["quantized_accuracy"] > 0.9
    perplexity = names["report"].scores[0]
    assert perplexity.word == "non-inferior"
    assert perplexity.quant_value == pytest.approx(perplexity.float_value, rel=0.01)
    assert load_bundle(tmp_path / "my_bundle").quantized() == names["model"].quantized()


def test_a_run_as_an_object_is_the_run_of_its_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = runpy.run_path(str(HERE / "run.py"))["result"]
    assert console.slimrun(tmp_path, "--config-dir", str(HERE), "experiment=tiny", "hydra.run.dir=twin")[0] == 0
    twin = json.loads((tmp_path / "twin" / "results.json").read_text())
    assert result.config_hash == twin["config_hash"]
    for key in ("size/compressed_bytes", "perplexity/quant", "artifact/logits_sha256"):
        assert result.metrics[key] == twin[key]
