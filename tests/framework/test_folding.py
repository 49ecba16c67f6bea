"""Folding scales into models of many kinds: what a model computes stays, what it does not allow is skipped and said."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from slimrun.ops.calibration.rdoq.folding import find_folds, fold, storable
from slimrun.ops.calibration.smoothing import smooth
from slimrun.ops.calibration.states import Walk
from slimrun.ops.calibration.wiring import Fold, skipped
from slimrun.ops.framework.pytorch.network import TorchNetwork
from slimrun.ops.memory import Room
from slimrun.ops.model.experts import unstack
from slimrun.ops.model.linears import linear_names
from slimrun.ops.quant.lowbit import Lowbit

from ..conftest import ARCHITECTURE, tiny
from .chatglm import VOCABULARY
from .chatglm import chatglm as make_chatglm

CHANGES: dict[str, Any] = {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
LATENT: dict[str, Any] = {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "kv_lora_rank": 32, "q_lora_rank": 32,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": 16,
}  # fmt: skip
# model_type and changes -> (takes a scale > reads) that hold, kinds of places without a fold
KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "llama": ({}, "input_layernorm>q post_attention_layernorm>gate v>o up>down", ""),
    "qwen2": ({}, "input_layernorm>q post_attention_layernorm>gate v>o up>down", ""),
    "qwen3": ({"head_dim": 16}, "input_layernorm>q post_attention_layernorm>gate v>o up>down", ""),  # norms of q, k
    "olmo2": ({}, "v>o up>down", ""),  # norms behind the blocks
    "phi3": ({}, "input_layernorm>qkv post_attention_layernorm>gate_up qkv>o gate_up>down", ""),
    "phi": ({}, "input_layernorm>q v>dense", "fc2"),  # one norm for attention and MLP, biases everywhere
    "opt": ({"ffn_dim": 128, "word_embed_proj_dim": 64},
            "self_attn_layer_norm>q final_layer_norm>fc1 v>out fc1>fc2", ""),  # ReLU
    "gemma": ({"head_dim": 16}, "input_layernorm+1>q post_attention_layernorm+1>gate v>o up>down", ""),
    "gemma3_text": ({"head_dim": 16}, "input_layernorm+1>q pre_feedforward_layernorm+1>gate v>o up>down", ""),
    "nemotron": ({}, "input_layernorm+1>q post_attention_layernorm+1>up v>o", "down"),  # squared ReLU without a gate
    "starcoder2": ({}, "input_layernorm>q post_attention_layernorm>c_fc v>o", "c"),
    "mpt": ({"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512}, "norm_1>Wqkv norm_2>up Wqkv>out", "down"),
    "gpt_neox": ({}, "input_layernorm>query_key_value post_attention_layernorm>dense_h_to_4h query_key_value>dense",
                 "dense_4h_to_h"),
    "bloom": ({"n_layer": 2, "n_head": 4},
              "input_layernorm>query_key_value post_attention_layernorm>dense_h_to_4h query_key_value>dense",
              "dense_4h_to_h"),
    "falcon": ({"num_kv_heads": 1}, "input_layernorm>query_key_value query_key_value>dense", "dense_4h_to_h"),
    "falcon grouped": ({"num_kv_heads": 2, "new_decoder_architecture": True},
                       "ln_attn>query_key_value ln_mlp>dense_h_to_4h query_key_value>dense", "dense_4h_to_h"),
    "falcon by head": ({"multi_query": False}, "input_layernorm>query_key_value query_key_value>dense",
                       "dense_4h_to_h"),
    "deepseek_v3": (LATENT, "input_layernorm>q_a q_a_layernorm>q_b post_attention_layernorm>gate "
                    "kv_b>o up>down", "input_layernorm post_attention_layernorm"),  # not all experts have tokens
    "bart": ({"d_model": 64, "decoder_layers": 2, "decoder_ffn_dim": 128, "decoder_attention_heads": 4},
             "v>out", "layernorm_embedding self_attn_layer_norm final_layer_norm fc2"),  # residuals read the norms
}  # fmt: skip
IDS = torch.arange(3, 35).unsqueeze(0)


def made(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model whose norms are not all ones."""
    config = AutoConfig.for_model(**(ARCHITECTURE | KINDS[kind][0] | {"model_type": kind.split()[0]}))
    config.initializer_range = config.init_std = 0.1
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for module in model.modules():
            if "Norm" in type(module).__name__ and module.weight is not None:
                module.weight.add_((torch.rand(module.weight.shape) * 0.8 - 0.3).to(dtype))
    unstack(model)
    return model


def run_of(model: nn.Module) -> Callable[[], Any]:
    return partial(model, input_ids=IDS, use_cache=False)


def covered(model: nn.Module) -> list[str]:
    """All linears but the last."""
    return list(linear_names(model))[:-1]


def found_in(model: nn.Module) -> tuple[list[Fold], dict[str, str]]:
    with torch.no_grad():
        return find_folds(TorchNetwork(model), run_of(model), covered(model))


def described(folds: list[Fold]) -> set[str]:
    """The folds in the words of KINDS."""

    def leaf(name: str) -> str:
        return name.rpartition(".")[2].removesuffix("_proj")

    return {f"{leaf(one.producer)}{'+1' if one.offset else ''}>{leaf(one.readers[0])}" for one in folds}


def scales(folds: list[Fold]) -> list[tuple[Fold, Tensor]]:
    """Each fold with a scale that its producer can take."""
    generator = torch.Generator().manual_seed(0)
    return [(one, one.per_producer(torch.rand(one.of.numel(), generator=generator) * 3 + 0.2)) for one in folds]


def distance(tensor: Tensor, expected: Tensor) -> float:
    return float((tensor - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_folded_leaves_what_the_model_computes(kind: str) -> None:
    """What is found does not depend on the precision of the weights."""
    model, half = made(kind), made(kind, torch.bfloat16)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    folds, without = found_in(model)
    for key, tensor in model.state_dict().items():  # bit for bit
        assert torch.equal(tensor, weights[key]), key
    assert [repr(one) for one in found_in(half)[0]] == [repr(one) for one in folds]
    assert described(folds) == set(KINDS[kind][1].split())
    assert {name.rpartition(".")[2].removesuffix("_proj") for name in without} == set(KINDS[kind][2].split())
    with torch.no_grad():
        before, network = run_of(model)().logits, TorchNetwork(model)
        for one, scale in scales(folds):
            fold(network, one, storable(network, one, scale), Room())
        assert distance(run_of(model)().logits, before) < 1e-5
    for one in folds:
        for name in (one.producer, *one.readers):
            assert not torch.equal(model.get_submodule(name).weight, weights[f"{name}.weight"]), name


@pytest.mark.parametrize("kind", ["llama", "gemma", "mpt", "phi", "bart", "deepseek_v3"])
def test_smoothed_norms_leave_what_the_model_computes(kind: str) -> None:
    model = made(kind)
    folds, without = found_in(model)
    linears = linear_names(model)
    with torch.no_grad():
        before = run_of(model)().logits
        walk = Walk(TorchNetwork(model, run_of(model)), [()], 1)
        smoothed, notes = smooth(walk, Lowbit(do_smooth=True), set(covered(model)))
        assert distance(run_of(model)().logits, before) < 1e-5
    assert set(smoothed) == {one.producer for one in folds if one.producer not in linears}
    assert notes == skipped("do_smooth=true", {name: why for name, why in without.items() if name not in linears})


def test_a_weight_less_one_keeps_few_digits_and_the_linears_know() -> None:
    """0.98 less than one is stored with an error of a tenth; what reads the norm takes what is stored."""
    model = made("gemma", torch.bfloat16)
    exact = deepcopy(model).float()
    folds, _ = found_in(model)
    with torch.no_grad():
        before, network = run_of(exact)().logits, TorchNetwork(model)
        for one, scale in scales(folds):
            if one.offset:
                fold(network, one, storable(network, one, scale * 10), Room())
        assert distance(run_of(model.float())().logits, before) < 0.01


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_folds_of_a_llama(kv_heads: int) -> None:
    model = tiny(**CHANGES, num_key_value_heads=kv_heads).module
    folds, without = found_in(model)
    assert len(folds) == 2 * 4  # of each layer: two norms, value -> output, up -> down
    assert without == {}
    with torch.no_grad():
        before, network = run_of(model)().logits, TorchNetwork(model)
        for one, scale in scales(folds):
            fold(network, one, scale, Room())
        torch.testing.assert_close(run_of(model)().logits, before, rtol=1e-4, atol=1e-5)


def test_folds_of_chatglm() -> None:
    model = make_chatglm()
    ids = torch.randint(0, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(0))
    network, run = TorchNetwork(model), partial(model, ids)
    with torch.no_grad():
        folds, without = find_folds(network, run, covered(model))
        assert {one.producer.rpartition(".")[2] for one in folds} == {
            "query_key_value", "dense_h_to_4h", "input_layernorm", "post_attention_layernorm",
        }  # fmt: skip
        assert without == {}
        before = run().logits
        for one, scale in scales(folds):
            fold(network, one, scale, Room())
        torch.testing.assert_close(run().logits, before, rtol=1e-4, atol=1e-5)


class Pair(nn.Module):
    """A norm, two linears, and a choice of what else the model does with them."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.norm, self.make, self.take = nn.RMSNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.rare = nn.ModuleList(nn.Linear(8, 8) for _ in range(1))
        for parameter in self.parameters():
            nn.init.normal_(parameter.data, generator=torch.Generator().manual_seed(parameter.numel()))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        if self.what == "experts without tokens" and bool(x.max() > 100):
            normed = self.rare[0](normed)
        made = self.make(normed)
        if self.what == "a clamp beyond what was seen":
            made = made.clamp(-50, 50)
        if self.what == "relu":
            made = made.relu()
        out = self.take(made)
        if self.what == "a little beside":
            out = out + 1e-3 * normed
        assert isinstance(out, Tensor)
        return out


class Whole(nn.Module):
    """Runs parts of a block itself, where the block does not."""

    config: Any = None

    def __init__(self, what: str) -> None:
        super().__init__()
        self.block = Pair(what)
        if what == "another has the weight":
            self.other = nn.Linear(8, 16)
            self.other.weight = self.block.make.weight

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        if self.block.what == "another reads it":
            out = out + self.block.norm(out) + self.block.make(x)[..., :8]
        if self.block.what == "another has the weight":
            out = out + self.other(x)[..., :8]
        assert isinstance(out, Tensor)
        return out


@pytest.mark.parametrize(
    ("what", "folded"),
    [
        ("relu", {"block.norm", "block.make"}),
        ("a clamp beyond what was seen", {"block.norm"}),
        ("a little beside", {"block.make"}),
        ("another reads it", set()),
        ("another has the weight", set()),
        ("experts without tokens", {"block.make"}),
    ],
)
def test_what_cannot_be_seen_in_the_outputs_alone(what: str, folded: set[str]) -> None:
    model = Whole(what)
    if what != "experts without tokens":
        del model.block.rare
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        folds, without = find_folds(TorchNetwork(model), partial(model, x))
    assert {one.producer for one in folds} == folded
    assert len(without) == 2 - len(folded)
