"""transformers reads a bundle by itself, and everybody who cannot read one says so."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.quantizers import auto

from slimrun.ops.framework.on_import import when_imported
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.none import NoQuantization
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.quant.w8a16 import W8A16

from ..export.bundles import written

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "quantizer", [W8A8S(embeddings="int8"), W8A8Dynamic(ignore_last_linear=False), NoQuantization()]
)
def test_the_model_is_the_bundles(tmp_path: Path, quantizer: Quantizer, dtype: str, tied: bool) -> None:
    model = written(tmp_path / "b", quantizer, dtype, tie_word_embeddings=tied)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "b", attn_implementation="eager", device_map="cpu")
    assert loaded.config._attn_implementation == loaded.model.config._attn_implementation == "eager"
    loaded.set_attn_implementation("sdpa")
    assert torch.equal(loaded(IDS).logits, model.module(IDS).logits)
    tokens = loaded.generate(IDS, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert tokens[0, 5:].tolist() == model.module.generate(IDS, max_new_tokens=3, min_new_tokens=3)[0, 5:].tolist()


@pytest.mark.parametrize(
    ("quantizer", "changes"),
    [
        (W8A8S(embeddings="int8"), {}),
        (W8A16(), {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
    ids=["embeddings", "experts"],
)
def test_so_are_its_embeddings_and_experts(tmp_path: Path, quantizer: Quantizer, changes: dict[str, Any]) -> None:
    model = written(tmp_path / "b", quantizer, **changes)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert torch.equal(loaded(IDS).logits, model.module(IDS).logits)


def test_without_slimrun_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "b", W8A8S())
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "slimrun")
    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "b")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dtype": torch.float16}, "dtype=torch.float16: the bundle's tensors are float32; leave dtype out"),
        ({"device_map": "auto"}, "device_map=auto: a bundle is loaded onto one device; give its name"),
        ({"device_map": {"model": 0, "lm_head": 1}}, "a bundle is loaded onto one device"),
    ],
)
def test_what_it_cannot_do_is_one_line(tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    written(tmp_path / "b", W8A8S())
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path / "b", **asked)


def test_a_file_of_mindspore_is_for_load_bundle(tmp_path: Path) -> None:
    written(tmp_path / "b", W8A8S())
    [file] = (tmp_path / "b").glob("*.safetensors")
    file.rename(file.with_suffix(".ckpt"))
    with pytest.raises(
        ValueError, match=r"\.ckpt: transformers reads \.safetensors; slimrun\.load_bundle reads this one"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path / "b")


def test_a_damaged_tensor_is_named(tmp_path: Path) -> None:
    written(tmp_path / "b", W8A8S())
    [file] = (tmp_path / "b").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not what was written: it differs from slimrun\.json"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "b")


def test_it_is_saved_by_copying(tmp_path: Path) -> None:
    written(tmp_path / "b", W8A8S())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    with pytest.raises(ValueError, match="quantized with slimrun and is not serializable"):
        model.save_pretrained(tmp_path / "c")


def test_a_call_waits_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "awaited.py").write_text("ready = True")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[ModuleType] = []
    when_imported("awaited", lambda: seen.append(sys.modules["awaited"]))
    assert not seen
    import awaited  # type: ignore[import-not-found]

    assert seen == [awaited]
    assert awaited.ready
    when_imported("awaited", lambda: seen.append(awaited))
    assert len(seen) == 2
    monkeypatch.delitem(sys.modules, "awaited")
    import awaited

    assert len(seen) == 2
