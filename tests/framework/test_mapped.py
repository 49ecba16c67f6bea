"""A model that memory has no room for stays in its files: no stage of any method has more at hand than it must."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate

from slimrun.ops.calibration.base import call
from slimrun.ops.calibration.rdoq import rounding
from slimrun.ops.framework.base import Device
from slimrun.ops.framework.pytorch import PyTorch
from slimrun.ops.memory import MAPPINGS, PAGE
from slimrun.ops.model.pretrained import Pretrained
from slimrun.runner.config import composed

from ..conftest import TEXTS, tiny
from ..test_memory import LINUX, pages_in_memory

CHOICES = [  # each way of going through a model
    "w8a8s",
    "w8a8 quant.fallback_level=1",
    "lowbit quant.do_smooth=true",
    "rdoq_data_free",
    "rdoq",
    "gptq quant.steps=row",
    "watersic",
]
AT_MOST_BESIDE = 0.1  # as much as the file has, of what lies in files without a name; all integers are a half
AT_MOST = 0.6  # of the file; two layers are a quarter, and the system maps 64 KiB around each page that is read


@LINUX
@pytest.mark.parametrize("choice", CHOICES)
def test_the_model_stays_in_its_file(choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MANY", 1)  # the level is sought as in models that memory has no room for
    model = tiny("float16", hidden_size=256, intermediate_size=1024, num_hidden_layers=8, tie_word_embeddings=False)
    model.module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    method, *overrides = choice.split()
    quantizer = instantiate(composed([f"quant={method}", *overrides]).quant)
    device = Device("cpu", "cpu", max_memory={"cpu": "8KiB"})
    bounded = PyTorch().load(Pretrained("tiny", str(tmp_path)).open(tmp_path), device)
    seen, beside = [], []

    def look(*_: object) -> None:
        seen.append(at_hand(f" {file}"))
        beside.append(at_hand(" (deleted)"))

    calibrator = PyTorch().calibrator(bounded, quantizer, TEXTS, 64)
    look()
    calibrator.quantize(call, look)
    look()
    calibrator.calibrate(look)
    look()
    assert max(seen) < AT_MOST * file.stat().st_size
    assert max(beside) < AT_MOST_BESIDE * file.stat().st_size


def at_hand(end: str) -> int:
    """Bytes that this process has in memory of mapped files whose names end so."""
    lines = [line for line in MAPPINGS.read_text().splitlines() if line.endswith(end)]
    spans = [[int(address, 16) // PAGE for address in line.split()[0].split("-")] for line in lines]
    return sum(pages_in_memory(first, last) for first, last in spans)
