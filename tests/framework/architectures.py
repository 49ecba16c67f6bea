"""Tiny random models of many architectures of transformers, by what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

BASE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 259, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
DENSE: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {"head_dim": 16},  # tied, norms of its own
    "gpt2": GPT2,  # tied, Conv1D
    "gpt_neox": {},  # fused attention, untied
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "bloom": {"n_layer": 2, "n_head": 4},
    "phi3": {},
    "mamba": {"state_size": 8},
    "bart": {"d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 128},
}  # fmt: skip
MLA = {
    "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 64, "head_dim": 16},
    "deepseek_v3": {"n_routed_experts": 8, "moe_intermediate_size": 64, "num_experts_per_tok": 2, **MLA},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4},
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 16},
    "llama4_text": {"num_local_experts": 4, "head_dim": 16, "intermediate_size_mlp": 128},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
}
KINDS = DENSE | MIXTURES


def config_of(kind: str, **changes: Any) -> Any:
    return AutoConfig.for_model(kind, **(BASE | KINDS.get(kind, {}) | changes))


def empty(kind: str, **changes: Any) -> Any:
    """The model on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(kind, **changes))


def save(kind: str, folder: Path, **changes: Any) -> Any:
    """The random model that `save_pretrained` wrote into the folder."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(kind, **changes), dtype=torch.float32).eval()
    model.save_pretrained(folder)
    return model
