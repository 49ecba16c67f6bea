"""Weights that are not the model's are refused before anything runs; what transformers converts or ties passes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from slimrun.ops.errors import Unavailable
from slimrun.ops.framework.base import Framework
from slimrun.ops.framework.pytorch import PyTorch
from slimrun.ops.framework.pytorch.loading import load_pretrained
from slimrun.ops.memory import Room
from slimrun.ops.model.base import Outline
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.model.random import Random
from slimrun.ops.model.tokenizer import byte_tokenizer
from slimrun.ops.weights.base import read_tensors
from slimrun.ops.weights.folder import read_headers
from slimrun.ops.weights.misfit import holes
from tests.conftest import ARCHITECTURE, CPU

from .architectures import BASE, KINDS, save

Tensors = dict[str, Tensor]
NO_BASE = {"llama4_text"}  # transformers gives it no base model apart from its output layer


def check(folder: Path) -> Outline:
    return PyTorch().check(Pretrained("mine", str(folder)).open(folder.parent / "cache"), CPU)


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(Unavailable) as caught:
        check(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    save("llama", tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - NO_BASE))
def test_what_save_pretrained_wrote_is_taken_and_every_change_of_it_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / kind
    parameters = save(kind, folder).num_parameters()
    assert check(folder).parameters == parameters
    whole = load_file(folder / "model.safetensors")
    lost = sorted(name for name, tensor in whole.items() if tensor.ndim > 1)[1]
    last = lost.rpartition(".")[2] if "expert" in lost else lost

    rewrite(folder, lambda _: {name: tensor for name, tensor in whole.items() if name != lost})
    assert last in refusal(folder)
    with pytest.raises(ValueError, match=r"does not hold the weights|experts lack weights"):
        load_pretrained(folder, Pretrained("mine", str(folder)), Room())
    rewrite(folder, lambda _: whole | {lost: whole[lost][:-1]})
    assert "instead of" in refusal(folder) or "lack" in refusal(folder)
    rewrite(folder, lambda _: {f"module.{name}": tensor for name, tensor in whole.items()})
    assert "every name begins with module. (as DataParallel saves them)" in refusal(folder)
    rewrite(folder, lambda _: whole | {"extra.weight": torch.zeros(2)})
    assert "has extra.weight, not known to the model" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda sd: {k: v for k, v in sd.items() if "1.mlp" not in k}, "lacks model.layers.1.mlp.gate_proj.weight, "),
        (lambda sd: {k: v for k, v in sd.items() if k != "lm_head.weight"}, "look like a base model's"),
        (lambda sd: {f"_orig_mod.{k}": v for k, v in sd.items()}, "as torch.compile saves them"),
        (lambda sd: {f"base_model.model.{k}": v for k, v in sd.items()}, "LoRA adapter's: merge it"),
        (lambda sd: {k.replace("weight", "qweight"): v for k, v in sd.items()}, "they look quantized already"),
        (lambda sd: sd | {"lm_head.weight": sd["lm_head.weight"].to(torch.int8)}, "holds whole numbers"),
        (lambda sd: sd | {"encoder.embed.weight": torch.zeros(2)}, "look like an encoder-decoder's"),
        (lambda sd: sd | {"lm_head.weight": torch.zeros(9, 64)}, "lm_head.weight [9, 64] instead of [259, 64]"),
    ],
)  # fmt: skip
def test_what_they_look_like_is_said(llama: Path, change: Callable[[Tensors], Tensors], line: str) -> None:
    rewrite(llama, change)
    assert line in refusal(llama)


def test_old_buffers_that_the_model_computes_itself_are_no_weights(llama: Path) -> None:
    rewrite(llama, lambda sd: sd | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    check(llama)


def test_another_head_is_named(tmp_path: Path) -> None:
    config = AutoConfig.for_model(**ARCHITECTURE)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "judge")
    assert "has score.weight" in refusal(tmp_path / "judge")
    assert "LlamaForSequenceClassification, which config.json names" in refusal(tmp_path / "judge")


def test_an_encoder_decoder_is_named(llama: Path) -> None:
    described = {"model_type": "t5", "vocab_size": 259, "d_model": 64, "num_layers": 1, "is_encoder_decoder": True}
    (llama / "config.json").write_text(json.dumps(described))
    assert "model=mine is t5, an encoder-decoder; give a causal language model" in refusal(llama)


def test_one_tensor_of_one_expert(tmp_path: Path) -> None:
    names = [f"mlp.experts.{i}.{part}.weight" for i in range(4) for part in ("up", "down") if (i, part) != (2, "up")]
    assert holes([*names, "layers.0.attn.weight", "layers.1.mlp.weight"]) == [
        "mlp.experts.2.up.weight", "layers.1.attn.weight", "layers.0.mlp.weight",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "already (quantization_config: gptq)"),
        ("config.json", {"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "config: fp8)"),
        ("adapter_config.json", {}, "holds a LoRA adapter (adapter_config.json), which would not be applied"),
        ("quant_model_description_w8a8s.json", {}, "is a bundle of quantized weights"),
    ],
)  # fmt: skip
def test_a_folder_of_another_kind(llama: Path, file: str, content: dict[str, Any], line: str) -> None:
    before = json.loads((llama / file).read_text()) if (llama / file).exists() else {}
    (llama / file).write_text(json.dumps(before | content))
    assert line in refusal(llama)


def shards(folder: Path) -> dict[str, str]:
    """Cut the weights of the folder into two files and an index; its weight_map."""
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(whole)}
    for file in set(weight_map.values()):
        part = {name: whole[name] for name in whole if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    return weight_map


@pytest.mark.parametrize(
    ("index", "line"),
    [
        ("{", "model.safetensors.index.json is damaged"),
        ("[]", "model.safetensors.index.json is damaged"),
        ('{"weight_map": ["a"]}', "model.safetensors.index.json is damaged"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "which is outside the folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "which is outside the folder"),
        ('{"weight_map": {"a": "model-00003-of-00003.safetensors"}}', "lacks model-00003-of-00003.safetensors"),
    ],
)
def test_an_index_of_shards_that_is_wrong(llama: Path, index: str, line: str) -> None:
    file = llama / "model.safetensors.index.json"
    file.write_text(json.dumps({"metadata": {}, "weight_map": shards(llama)}))
    check(llama)
    file.write_text(index)
    assert line in refusal(llama)


def test_files_beside_the_weights_that_are_not_loaded_stop_nothing(llama: Path) -> None:
    (llama / "consolidated.safetensors").write_bytes(b"cut off")
    (llama / "original").mkdir()
    (llama / "original" / "model.safetensors").write_bytes(b"")
    [note] = check(llama).notes
    assert note.startswith("consolidated.safetensors: ")
    (llama / "model.safetensors").unlink()
    assert "consolidated.safetensors would not be loaded" in check(llama).missing


def test_pickled_weights_are_read_without_being_executed(llama: Path) -> None:
    whole = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    file = llama / "pytorch_model.bin"
    torch.save(whole, file)
    check(llama)
    torch.save({name: whole[name] for name in list(whole)[1:]}, file)
    assert next(iter(whole)) in refusal(llama)
    torch.save({"model": whole, "step": 3}, file)
    assert "model is dict, expected the tensors of model.state_dict()" in refusal(llama)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "is a pointer of Git LFS, not the weights: git lfs pull" in refusal(llama)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_pickled_weights_are_one_error(zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(3, 4), "b": torch.ones(5)}, file, _use_new_zipfile_serialization=zipped)
    whole, chance = file.read_bytes(), random.Random(0)
    assert list(read_headers([file])) == ["a", "b"]
    for size in range(0, len(whole), 5):
        file.write_bytes(whole[:size])
        with pytest.raises(Unavailable, match=r"pytorch_model.bin is truncated or damaged \(.+\); get it again$"):
            read_headers([file])
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8))):
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        with suppress(Unavailable):
            read_headers([file])
        with suppress(ValueError):  # the damage of one that passes is in a number or a name
            list(read_tensors(file))


@pytest.mark.parametrize(
    ("kind", "changes", "line"),
    [
        ("gemma2", {"head_dim": 16}, "changes its logits after the output layer (final_logit_softcapping=30.0)"),
        ("cohere", {}, "(logit_scale=0.0625)"),
        ("granite", {"logits_scaling": 8.0}, "(logits_scaling=8.0)"),
        ("bert", {}, "BertLMHeadModel changes its logits"),
        ("llama4_text", {}, "has no base model apart from its output layer"),
    ],
)
def test_logits_that_are_not_the_output_layers_are_seen_in_the_config(
    kind: str, changes: dict[str, Any], line: str, tmp_path: Path
) -> None:
    model = Random("mine", architecture={"model_type": kind, **BASE, **changes})
    with pytest.raises(Unavailable, match=line.replace("(", r"\(").replace(")", r"\)")):
        PyTorch().check(model.open(tmp_path), CPU)


def test_scales_of_one_change_nothing(tmp_path: Path) -> None:
    for changes in ({"model_type": "granite"}, {"model_type": "gemma2", "final_logit_softcapping": None}):
        PyTorch().check(Random("mine", architecture={**BASE, **changes}).open(tmp_path), CPU)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_float_model_with_broken_numbers_is_named_with_its_tensor(llama: Path, number: float) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        tensors["model.embed_tokens.weight"][200, 3] = number  # of a token that no probe asks for
        return tensors

    rewrite(llama, spoil)
    byte_tokenizer().save_pretrained(llama)
    with pytest.raises(ArithmeticError, match=r"float model.s model\.embed_tokens\.weight holds numbers that are not"):
        PyTorch().load(Pretrained("mine", str(llama)).open(llama.parent / "cache"), CPU)


def test_both_frameworks_say_the_same(framework: Framework, llama: Path) -> None:
    model = Pretrained("mine", str(llama))
    whole = load_file(llama / "model.safetensors")
    byte_tokenizer().save_pretrained(llama)
    (llama / "consolidated.safetensors").write_bytes(b"cut off")
    assert len(framework.check(model.open(llama.parent), CPU).notes) == 1
    rewrite(llama, lambda _: {name: tensor for name, tensor in whole.items() if "norm.weight" not in name})
    line = (
        r"does not hold the weights of .*: it lacks model.layers.0.input_layernorm.weight, .* and 2 more; get it again"
    )
    with pytest.raises(Unavailable, match=line):
        framework.check(model.open(llama.parent), CPU)
    with pytest.raises(ValueError, match=line):
        framework.load(model.open(llama.parent), CPU)
    rewrite(llama, lambda _: whole | {"lm_head.weight": torch.zeros(259, 64) / 0})
    with pytest.raises(ArithmeticError, match=r"the float model's lm_head.weight holds numbers that are not finite"):
        framework.load(model.open(llama.parent), CPU)


def test_what_torch_saved_loads_like_safetensors(llama: Path, framework: Framework) -> None:
    byte_tokenizer().save_pretrained(llama)
    model, checksums = Pretrained("mine", str(llama)), []
    for change in (lambda: None, lambda: as_torch_saves(llama)):
        change()
        assert len(framework.check(model.open(llama.parent), CPU).linears) == 15
        checksums.append(framework.load(model.open(llama.parent), CPU).logits_checksum())
    assert checksums[0] == checksums[1]


def as_torch_saves(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
