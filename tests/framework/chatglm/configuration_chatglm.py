"""The configuration of the shrunken ChatGLM2: the keys of the 6B model's config.json."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class ChatGLMConfig(PreTrainedConfig):
    model_type = "own_glm"  # chatglm is built in

    def __init__(
        self,
        num_layers: int = 28,
        padded_vocab_size: int = 65024,
        hidden_size: int = 4096,
        ffn_hidden_size: int = 13696,
        kv_channels: int = 128,
        num_attention_heads: int = 32,
        multi_query_attention: bool = True,
        multi_query_group_num: int = 2,
        seq_length: int = 32768,
        layernorm_epsilon: float = 1e-5,
        rmsnorm: bool = True,
        add_bias_linear: bool = False,
        add_qkv_bias: bool = True,
        **others: Any,
    ) -> None:
        self.num_layers = num_layers
        self.padded_vocab_size = self.vocab_size = padded_vocab_size
        self.hidden_size = hidden_size
        self.ffn_hidden_size = ffn_hidden_size
        self.kv_channels = kv_channels
        self.num_attention_heads = num_attention_heads
        self.multi_query_attention = multi_query_attention
        self.multi_query_group_num = multi_query_group_num
        self.seq_length = seq_length
        self.layernorm_epsilon = layernorm_epsilon
        self.rmsnorm = rmsnorm
        self.add_bias_linear = add_bias_linear
        self.add_qkv_bias = add_qkv_bias
        others.setdefault("tie_word_embeddings", False)
        others.pop("vocab_size", None)
        super().__init__(**others)
