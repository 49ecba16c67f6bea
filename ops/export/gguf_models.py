"""Which models llama.cpp runs from files of ours: its name of each, what config.json may say, its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf import GGML_QUANT_VERSION, MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, LlamaFileType


@dataclass(frozen=True)
class Architecture:
    """A model as llama.cpp knows it."""

    kind: MODEL_ARCH
    fixed: Mapping[str, Any] = field(default_factory=dict)  # keys of config.json -> the only value that its code runs
    neighbours: bool = False  # rotary embeddings rotate neighbours there, where transformers rotates halves

    @property
    def name(self) -> str:
        """How keys of its metadata begin."""
        return str(MODEL_ARCH_NAMES[self.kind])


DENSE = {"hidden_act": "silu", "rope_type": "default"}
SPARSE = DENSE | {"decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False}
ARCHITECTURES = {
    "llama": Architecture(MODEL_ARCH.LLAMA, DENSE, neighbours=True),
    "mixtral": Architecture(MODEL_ARCH.LLAMA, DENSE | {"sliding_window": None}, neighbours=True),
    "qwen2_moe": Architecture(MODEL_ARCH.QWEN2MOE, SPARSE | {"norm_topk_prob": False, "tie_word_embeddings": False}),
    "qwen3_moe": Architecture(MODEL_ARCH.QWEN3MOE, SPARSE | {"norm_topk_prob": True}),
}
EXPERTS = ("num_local_experts", "num_experts")


def check_config(config: Mapping[str, Any]) -> None:
    """ValueError names the key of config.json that llama.cpp would run otherwise, or not at all."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise _refused("model_type", kind, ", ".join(ARCHITECTURES))
    rope = config.get("rope_parameters") or {}
    for key, allowed in ARCHITECTURES[kind].fixed.items():
        said = (rope if key == "rope_type" else config).get(key, allowed)
        if said != allowed:
            raise _refused(key, said, str(allowed))


def write_metadata(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    """Add everything that llama.cpp has to know of the model beside its tensors and vocabulary."""
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config
    writer.add_name(str(config.get("_model_name_or_path") or "slimrun"))
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    experts = next((config[key] for key in EXPERTS if config.get(key)), None)
    if experts is not None:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if config.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _refused(key: str, said: object, allowed: str) -> ValueError:
    return ValueError(f"config.json: {key}={said} is not written as gguf; allowed: {allowed}")
