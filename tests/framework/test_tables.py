"""Quantized embeddings and output head: every method, tied and untied, in both frameworks; what stays float and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file

from slimrun.ops import bundle, load_bundle
from slimrun.ops.calibration.tables import rounded_rows
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native
from slimrun.ops.format.arithmetic import QuantizedWeight
from slimrun.ops.format.linear import Int8Table, quantized_linear
from slimrun.ops.framework.base import Device, Framework, LoadedModel
from slimrun.ops.framework.pytorch import Calibrator, PyTorch, TorchModel
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.none import NoQuantization
from slimrun.ops.quant.rdoq import RDOQ
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.quant.w8a16 import W8A16

from ..conftest import CPU, TEXTS, described, tiny
from ..quant.test_methods import methods
from . import architectures, folders

EVERY = [replace(method, embeddings="int8") for method in methods() if getattr(method, "per_channel", True)]


def written(folder: Path, framework: Framework, model: LoadedModel, quantizer: Quantizer) -> dict[str, torch.Tensor]:
    """The tensors of the quantized model, whose bundle lies in the folder, proved equal."""
    framework.calibrator(model, quantizer, TEXTS, 64).run()
    tensors, codec = dict(model.tensors()), Native()
    coded = Compressor(codec).run({name: tensors[f"{name}.weight"].numpy() for name in model.quantized()})
    quant_type = quantizer.quant_type
    bundle.write(folder, tensors, coded, quant_type, codec, model.save_description, framework.weight_file)
    bundle.verify(folder, tensors)
    return tensors


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantizer", EVERY, ids=repr)
def test_every_method_reads_back_and_generates(
    tmp_path: Path, framework: Framework, quantizer: Quantizer, tied: bool
) -> None:
    if quantizer.needs_gradients and not framework.gives_gradients:
        pytest.skip("needs gradients")
    model: Any = framework.load(described(tie_word_embeddings=tied).open(tmp_path), CPU)
    tensors = written(tmp_path / "b", framework, model, quantizer)
    assert tensors["model.embed_tokens.weight"].dtype == torch.int8
    assert tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]).dtype == torch.int8
    assert ("lm_head.weight" in tensors) is not tied
    restored: Any = framework.restore(tmp_path / "b", CPU)
    assert restored.logits_checksum() == model.logits_checksum()
    assert restored.tensors().keys() == tensors.keys()
    prompt = model.encode_prompt("Hello")
    assert restored.generate([prompt], 5) == model.generate([prompt], 5)


@pytest.mark.mindspore
def test_each_framework_runs_the_others_bundle(tmp_path: Path, framework: Framework) -> None:
    model = framework.load(described().open(tmp_path), CPU)
    written(tmp_path / "b", framework, model, W8A16(embeddings="int8"))
    other, own = load_bundle(tmp_path / "b"), framework.restore(tmp_path / "b", CPU)
    ids = np.array([other.encode("some text of a few words")])
    log_probs = [reader.log_probs(reader.hidden(ids)[0]) for reader in (other, own)]  # type: ignore[attr-defined]
    np.testing.assert_allclose(*log_probs, atol=1e-4)


def test_chatglm_has_a_table_and_a_head_under_its_own_names(tmp_path: Path) -> None:
    source = Pretrained("glm", str(folders.chatglm2(tmp_path / "glm")), dtype="float32")
    model = PyTorch().load(source.open(tmp_path), CPU)
    written(tmp_path / "b", PyTorch(), model, W8A8S(embeddings="int8"))
    restored = load_bundle(tmp_path / "b")
    assert {"transformer.embedding.word_embeddings", "transformer.output_layer"} <= set(restored.quantized())
    assert restored.logits_checksum() == model.logits_checksum()


@pytest.mark.parametrize("placed", [{"max_memory": {"cpu": "40KB"}}, {"max_memory": {"cpu": "1MB"}}])
def test_a_tied_table_runs_from_disk(tmp_path: Path, placed: dict[str, Any]) -> None:
    model = tiny()
    written(tmp_path / "b", PyTorch(), model, W8A16(embeddings="int8"))
    device = Device(name="cpu_disk", type="cpu", **placed)
    restored = PyTorch().restore(tmp_path / "b", device)
    prompt = model.encode_prompt("Hello")
    assert restored.generate([prompt], 5) == model.generate([prompt], 5)
    assert restored.tensors().keys() == model.tensors().keys()


@pytest.mark.parametrize(
    ("kind", "changes", "places"),
    [
        ("gpt_neox", {}, {"gpt_neox.embed_in", "lm_head"}),
        ("opt", {}, {"model.decoder.embed_tokens"}),  # positions beside it stay float
        ("bloom", {}, {"transformer.word_embeddings"}),
        ("phi3", {"tie_word_embeddings": True}, {"model.embed_tokens"}),
    ],
)
def test_other_architectures(kind: str, changes: dict[str, Any], places: set[str]) -> None:
    torch.manual_seed(0)
    module = architectures.AutoModelForCausalLM.from_config(architectures.config_of(kind, **changes)).eval()
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        expected = module(input_ids=ids).logits
        Calibrator(module, W8A16(embeddings="int8"), [{"input_ids": ids}]).run()
        logits = module(input_ids=ids).logits
    assert {name for name, child in module.named_modules() if isinstance(child, Int8Table)} == places
    assert float((logits - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_what_does_more_than_look_up_stays_float_and_is_said() -> None:
    module = architectures.AutoModelForCausalLM.from_config(architectures.config_of("gemma3_text")).eval()
    calibrator = Calibrator(module, W8A16(embeddings="int8"), [{"input_ids": torch.arange(3, 40).unsqueeze(0)}])
    calibrator.run()
    assert not any(isinstance(child, Int8Table) for child in module.modules())
    assert "model.embed_tokens stays float, because it does more than look up" in calibrator.notes


def test_a_head_whose_weight_the_model_reads_stays_float_and_is_said(tiny_model: TorchModel) -> None:
    head = tiny_model.module.lm_head
    tiny_model.module.model.norm.register_forward_hook(lambda *_: head.weight.sum() and None)
    calibrator = Calibrator(tiny_model.module, W8A16(embeddings="int8"), [{"input_ids": torch.arange(9).unsqueeze(0)}])
    calibrator.run()
    assert tiny_model.module.lm_head is head
    note = "model.embed_tokens stays float, because the model reads the weight itself"
    assert note in calibrator.notes


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-4, 4, width=32)),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_a_table_is_its_rows_and_its_product(rows: np.ndarray, dtype: torch.dtype) -> None:
    weight = torch.from_numpy(rows)
    rounded = rounded_rows(weight, dtype)
    assert torch.equal(rounded.scale, rounded.scale.to(dtype).float())
    assert bool(((rounded.values * rounded.scale - weight).abs() <= 0.51 * rounded.scale).all())
    table: Any = quantized_linear("W8_TABLE", rounded, None, dtype)
    tokens = torch.arange(len(rows))
    assert table(tokens).dtype == dtype
    assert torch.equal(table(tokens).float(), (rounded.values * rounded.scale).to(dtype).float())
    states = torch.eye(rows.shape[1])
    torch.testing.assert_close(table(states).T, rounded.values * rounded.scale)


def test_rows_of_a_large_table_are_multiplied_in_parts() -> None:
    values = torch.randint(-127, 128, (9000, 8), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    bias = torch.arange(9000.0)
    table = quantized_linear("W8_TABLE", QuantizedWeight(values, torch.full((9000, 1), 0.5)), bias, torch.float32)
    x = torch.arange(16.0).reshape(2, 8)
    torch.testing.assert_close(table(x), x @ (values * 0.5).T + bias)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embeddings": "int4"}, "embeddings=int4 is not known; allowed: int8, or null: float"),
        ({"embeddings": "int8", "ignore_last_linear": False}, "ignore_last_linear=false gives it to the method"),
    ],
)
def test_wrong_knobs_are_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        W8A8S(**given)
    with pytest.raises(ValueError, match="quant=none does not"):
        NoQuantization(embeddings="int8")
    with pytest.raises(ValueError, match=r"grid\.embeddings=int8 has no effect"):
        RDOQ(grid=W8A16(embeddings="int8"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_scale": None}, "embed_tokens lacks weight_scale"),
        ({"weight_scale": torch.ones(1)}, "has 1 steps, expected one of each of 259 rows"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    written(tmp_path / "b", PyTorch(), tiny(), W8A16(embeddings="int8"))
    (tmp_path / "b" / "slimrun.json").unlink()
    file = tmp_path / "b" / "quant_model_weight_w8a16c.safetensors"
    stored = load_file(file) | {f"model.embed_tokens.{suffix}": tensor for suffix, tensor in change.items()}
    file.chmod(0o600)
    save_file({key: tensor for key, tensor in stored.items() if tensor is not None}, file)
    with pytest.raises(ValueError, match=message):
        load_bundle(tmp_path / "b")
