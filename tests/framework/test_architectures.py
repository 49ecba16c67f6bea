"""Kinds of models, tiny and random: generation and scores are those of full passes, and all of them are quantized.

Which linears stay float and which caches are used follows from what each model does.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from slimrun.ops.framework.pytorch import Calibrator, TorchModel
from slimrun.ops.memory import Room
from slimrun.ops.model.tokenizer import byte_tokenizer
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic

from ..conftest import ARCHITECTURE

SIZES = {key: value for key, value in ARCHITECTURE.items() if key not in ("model_type", "tie_word_embeddings")}
MAMBA = {"state_size": 8}
LINEAR_ATTENTION = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
KEYS_AND_VALUES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16},
    "phi": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gpt_neox": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"num_kv_heads": 1},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "cohere": {},
    "mixtral": {"num_local_experts": 4},
}
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_5_text": LINEAR_ATTENTION,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": MAMBA | {"head_dim": 16, "num_heads": 8, "n_groups": 2, "chunk_size": 8},
}
NO_STEPS: dict[str, dict[str, Any]] = {
    "mamba": MAMBA,
    "falcon_mamba": MAMBA,
    "rwkv": {"attention_hidden_size": 64, "context_length": 512},
    "recurrent_gemma": {
        "lru_width": 64,
        "block_types": ["recurrent", "attention"],
        "head_dim": 16,
        "attention_window_size": 32,
    },
}
KINDS = {**KEYS_AND_VALUES, **HYBRIDS, **NO_STEPS}
PROMPTS = [[11, 48, 85, 122, 159, 196], [48, 85, 122]]


def make(kind: str) -> TorchModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | KINDS[kind]))
    return TorchModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32), byte_tokenizer(), kind, "x")


@cache
def shared(kind: str) -> TorchModel:
    return make(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_and_scores_are_those_of_full_passes(kind: str) -> None:
    model = shared(kind)
    model.stop_tokens = set  # type: ignore[method-assign]  # nothing ends an answer early
    for prompt, answer in zip(PROMPTS, model.generate(PROMPTS, 4), strict=True):
        ids = list(prompt)
        for token in answer:
            scores = model.log_probs(model.hidden(np.array([ids]))[0, -1:])[0]
            assert scores[token] > scores.max() - 1e-5
            ids.append(token)
        assert len(ids) == len(prompt) + 4
    options = [[7, 8, 9], [100, 12]]
    for option, scored in zip(options, model.continuations(PROMPTS[0], options), strict=True):
        hidden = model.hidden(np.array([[*PROMPTS[0], *option]]))[0, len(PROMPTS[0]) - 1 : -1]
        expected = model.log_probs(hidden)[np.arange(len(option)), option]
        np.testing.assert_allclose(scored, expected, atol=1e-4)
    assert model._steps.generates is (kind not in NO_STEPS)
    assert model._steps.keeps_prefix is (kind in KEYS_AND_VALUES)
    assert len(model.notes) == (kind not in KEYS_AND_VALUES)


@pytest.mark.parametrize("kind", KINDS)
def test_many_questions_go_block_by_block_where_memory_has_no_room(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(kind)
    questions = [(PROMPTS[0], [[7, 8, 9], [100, 12]]), (PROMPTS[1], [[5]]), ([*range(40)], [[1, 2], [3, 4], [5, 6]])]
    expected = list(model.all_continuations(questions))
    model.room = Room(0)
    model.room.full = True
    monkeypatch.setattr(model, "continuations", None)  # which runs the whole model for each
    for scored, scores in zip(model.all_continuations(questions), expected, strict=True):
        for one, other in zip(scored, scores, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["llama", "opt", "lfm2", "mamba", "recurrent_gemma"])
@pytest.mark.parametrize("quantizer", [W8A8(observer="minmax"), W8A8Dynamic()], ids=["static", "dynamic"])
def test_a_quantized_model_uses_the_cache_as_the_float_one_does(kind: str, quantizer: Quantizer) -> None:
    float_model, model = make(kind), make(kind)
    Calibrator(model.module, quantizer, [{"input_ids": torch.tensor([PROMPTS[0]]), "use_cache": False}]).run()
    for one in (float_model, model):
        one.generate(PROMPTS, 1)
    assert model.notes == float_model.notes
    assert (model._steps.generates, model._steps.keeps_prefix) == (
        float_model._steps.generates,
        float_model._steps.keeps_prefix,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_linears_whose_weight_the_model_reads_stay_float(kind: str) -> None:
    model = make(kind)
    ids = {"input_ids": torch.tensor([[*PROMPTS[0], *range(30, 60)]]), "use_cache": False}
    expected = model.module(**ids).logits.detach()
    calibrator = Calibrator(model.module, W8A8(observer="minmax"), [ids])
    layers = calibrator.run()
    logits = model.module(**ids).logits.detach()
    assert 0 < float((logits - expected).norm() / expected.norm()) < 0.1
    kept = {layer.name.rpartition(".")[2] for layer in layers if layer.note.startswith("kept")}
    assert kept == ({"dt_proj"} if kind in ("mamba", "falcon_mamba") else set())


class Attention(nn.Module):
    """torch's own attention reads its output projection's weight; one gate is read, another called by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.read, self.named, self.last = (nn.Linear(16, 16) for _ in range(4))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + nn.functional.linear(x, self.read.weight) + self.named(input=x)
        return self.last(self.encoder(self.attention(x, x, x)[0]))


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_users_network_keeps_what_it_does_with_its_linears() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(Attention(), Doubled(16, 16), nn.Linear(16, 4)).eval()
    x = torch.randn(2, 5, 16)
    expected = network(x).detach()
    calibrator = Calibrator(network, W8A8(observer="minmax"), [[x]])
    notes = {layer.name: layer.note for layer in calibrator.run() if layer.note}
    read = "kept float, because the model reads the weight itself"
    layers = ("self_attn.out_proj", "linear1", "linear2")
    assert notes == {
        "0.read": read,
        "0.named": "kept float, because the model gives it more than an input",
        "0.attention.out_proj": read,
        **{f"0.encoder.{name}": read for name in layers},
        "1": "kept float, because it computes something else than weight times input plus bias",
    }
    assert type(network[1]) is Doubled
    with torch.no_grad():  # then the encoder takes its fast path
        outputs = network(x)
    assert 0 < float((outputs - expected).norm() / expected.norm()) < 0.1
