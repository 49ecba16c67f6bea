"""GGUF: read back by transformers, which brings a reader of its own, every weight is ours times a float16 step."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split, Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from slimrun.ops.export.gguf import Gguf
from slimrun.ops.export.gguf_vocabulary import CUTS
from slimrun.ops.format.linear import QuantizedLinear
from slimrun.ops.framework.pytorch import PyTorch, TorchModel
from slimrun.ops.framework.pytorch.language_model import float_products
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.none import NoQuantization
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.quant.w8a16 import W8A16

from ..conftest import CPU, tiny
from ..framework import folders
from ..framework.architectures import MIXTURES
from .bundles import write

WORDS = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


def exported(
    tmp_path: Path, quantizer: Quantizer, cut: object = WORDS, **changes: object
) -> tuple[Path, dict[str, torch.Tensor]]:
    """The file, and the weights of the model that it has to hold."""
    model = tiny(**changes)
    model.tokenizer.backend_tokenizer.pre_tokenizer = cut
    write(tmp_path / "artifact", model, quantizer)
    state = {key: tensor for key, tensor in model.module.state_dict().items() if tensor.is_floating_point()}
    for name, child in model.module.named_modules(remove_duplicate=False):
        if isinstance(child, QuantizedLinear):
            state[f"{name}.weight"] = child.floats()[0]
    Gguf().run(tmp_path / "artifact", tmp_path / "export")
    return tmp_path / "export" / "model-Q8_0.gguf", state


@pytest.mark.parametrize(
    ("quantizer", "changes"),
    [
        (W8A8S(), {}),
        (W8A8S(ignore_last_linear=False), {"tie_word_embeddings": False}),
        (W8A8Dynamic(), {"head_dim": 32, "tie_word_embeddings": False}),
        (W8A16(per_channel=False), {"num_key_value_heads": 4}),
        (W8A8S(embeddings="int8"), {}),
        (W8A16(embeddings="int8"), {"tie_word_embeddings": False}),
        (NoQuantization(), {}),
        (W8A8S(ignore=["*.k_proj", "*.up_proj"]), {}),  # no groups there
    ],
    ids=repr,
)
def test_transformers_reads_the_same_weights(tmp_path: Path, quantizer: Quantizer, changes: dict[str, object]) -> None:
    file, weights = exported(tmp_path, quantizer, **changes)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    state = loaded.state_dict()
    for key, expected in weights.items():
        if key in state:  # coded parts are none
            torch.testing.assert_close(state[key], expected, rtol=2**-11, atol=1e-7)
    assert {key for key in state if key.endswith("weight")} <= weights.keys()
    assert loaded.config.rope_parameters["rope_theta"] == 10000.0


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen3_moe", {"norm_topk_prob": True}),
        ("qwen2_moe", {"norm_topk_prob": False, "tie_word_embeddings": False}),
    ],
)
def test_transformers_computes_the_same_with_experts(tmp_path: Path, kind: str, changes: dict[str, object]) -> None:
    model = mixture(tmp_path, kind, **changes)
    config = AutoConfig.from_pretrained(tmp_path / "artifact")
    del config.quantization_config  # of the bundle
    file = tmp_path / "export" / "model-Q8_0.gguf"
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, config=config)
    tokens = torch.arange(3, 37).reshape(2, 17)
    with torch.inference_mode(), float_products(model.module):
        torch.testing.assert_close(loaded(tokens).logits, model.module(tokens).logits, rtol=0, atol=2e-3)


def test_experts_are_stacks_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    model = mixture(tmp_path, "mixtral", num_local_experts=11)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "export" / "model-Q8_0.gguf").tensors}
    stack = tensors["blk.1.ffn_down_exps.weight"]
    assert stack.shape.tolist() == [128, 64, 11]
    weights = gguf.dequantize(stack.data, stack.tensor_type)
    for number in range(11):
        expected = model.module.get_submodule(f"model.layers.1.mlp.experts.{number}.down_proj").floats()[0]
        np.testing.assert_allclose(weights[number], expected, rtol=2**-11, atol=1e-7)
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert Gguf().load(tmp_path / "export") is None  # for transformers it were a LLaMA


def mixture(tmp_path: Path, kind: str, **changes: object) -> TorchModel:
    """The quantized model that lies in tmp_path / "export"."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny(model_type=kind, **heads | MIXTURES[kind] | changes)
    model.tokenizer.backend_tokenizer.pre_tokenizer = WORDS
    write(tmp_path / "artifact", model, W8A8S())
    Gguf().run(tmp_path / "artifact", tmp_path / "export")
    return model


def test_biases_are_those_of_the_model_in_the_order_of_their_rows(tmp_path: Path) -> None:
    file, _ = exported(tmp_path, W8A8S(), attention_bias=True)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert tensors["blk.1.attn_q.bias"].tensor_type == gguf.GGMLQuantizationType.F32
    assert tensors["blk.1.attn_q.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0


def test_the_vocabulary_is_the_tokenizers(tmp_path: Path) -> None:
    file, _ = exported(tmp_path, W8A8S())
    fields = gguf.GGUFReader(file).fields
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "artifact")
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens == sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    kinds = np.array(fields["tokenizer.ggml.token_type"].contents())
    assert set(kinds[tokenizer.all_special_ids]) == {int(gguf.TokenType.CONTROL)}


@pytest.mark.parametrize("cut", CUTS, ids=CUTS.get)
def test_a_cut_is_told_by_its_steps(tmp_path: Path, cut: tuple[str, ...]) -> None:
    if cut == ("digits", "words of GPT-2"):
        steps = WORDS
    elif cut == ("words of GPT-2",):
        steps = ByteLevel(add_prefix_space=False)
    else:
        steps = Sequence([Split(Regex(cut[0]), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    file, _ = exported(tmp_path, W8A16(), steps)
    assert gguf.GGUFReader(file).fields["tokenizer.ggml.pre"].contents() == CUTS[cut]


def test_pieces_of_sentencepiece_keep_their_order(tmp_path: Path) -> None:
    folders.llama(tmp_path / "llama", intermediate_size=96)
    model = PyTorch().load(Pretrained("llama", str(tmp_path / "llama")).open(tmp_path / "cache"), CPU)
    write(tmp_path / "artifact", model, W8A16())
    Gguf().run(tmp_path / "artifact", tmp_path / "export")
    fields = gguf.GGUFReader(tmp_path / "export" / "model-Q8_0.gguf").fields
    vocabulary = {
        name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("model", "tokens", "scores", "token_type")
    }
    pieces = SentencePieceProcessor(str(tmp_path / "llama" / "tokenizer.model"))
    assert vocabulary["model"] == "llama"
    assert vocabulary["tokens"] == [pieces.id_to_piece(number) for number in range(pieces.get_piece_size())]
    order = [number for number, kind in enumerate(vocabulary["token_type"]) if kind == int(gguf.TokenType.NORMAL)]
    merged = [number for number in order if len(vocabulary["tokens"][number]) > 1]
    assert [vocabulary["scores"][number] for number in merged] == sorted(
        (vocabulary["scores"][n] for n in merged), reverse=True
    )
    assert vocabulary["token_type"].count(int(gguf.TokenType.BYTE)) == 256
    assert fields["tokenizer.ggml.add_space_prefix"].contents()
    assert fields["tokenizer.ggml.add_bos_token"].contents()
    assert "tokenizer.ggml.padding_token_id" not in fields  # the config says -1


def test_an_unknown_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json has the cut Whitespace .* gguf is not written"):
        exported(tmp_path, W8A16(), Whitespace())
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gpt_neox"},
            "config.json: model_type=gpt_neox is not written as gguf; allowed: llama,",
        ),
        (
            {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False},
            "config.json: norm_topk_prob=False is not written as gguf; allowed: True",
        ),
        ({"hidden_act": "gelu"}, "config.json: hidden_act=gelu is not written as gguf; allowed: silu"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
            "config.json: rope_type=linear is not written as gguf; allowed: default",
        ),
        ({"intermediate_size": 136}, "down_proj.weight has 136 columns; Q8_0 wants a multiple of 32"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exported(tmp_path, W8A16(), **changes)
