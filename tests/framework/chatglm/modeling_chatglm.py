"""ChatGLM2 by its parameter names: fused attention with bias and shared key-value groups, fused gate and up.

Rotary positions turn the first half of each head's channels, in neighbouring pairs. Activations are [B, T, C].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_chatglm import ChatGLMConfig


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (self.weight * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class RotaryEmbedding(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        # persistent, as in the 6B model's checkpoint
        self.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(0, size, 2).float() / size))

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq.float()
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, T, heads, channels]: pairs of the first half turned by their angles [B, T, channels / 4]."""
    cos, sin = (part.unsqueeze(2) for part in rotary)
    turned, kept = x.chunk(2, dim=-1)
    even, odd = turned.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned.to(x.dtype), kept], dim=-1)


class SelfAttention(nn.Module):
    def __init__(self, config: ChatGLMConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.channels = config.kv_channels
        self.heads, self.groups = config.num_attention_heads, config.multi_query_group_num
        inner = self.heads * self.channels
        fused = inner + 2 * self.groups * self.channels
        self.query_key_value = nn.Linear(config.hidden_size, fused, bias=config.add_qkv_bias)
        self.dense = nn.Linear(inner, config.hidden_size, bias=config.add_bias_linear)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, past_key_values: DynamicCache | None
    ) -> Tensor:
        mixed = self.query_key_value(x).unflatten(-1, (-1, self.channels))
        query, key, value = mixed.split([self.heads, self.groups, self.groups], dim=2)
        query, key = rotate(query, rotary), rotate(key, rotary)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer)
        key, value = (part.repeat_interleave(self.heads // self.groups, dim=1) for part in (key, value))
        scores = query @ key.transpose(-1, -2) / self.channels**0.5 + mask
        context = torch.softmax(scores.float(), dim=-1).to(value.dtype) @ value
        return self.dense(context.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=config.add_bias_linear)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=config.add_bias_linear)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.dense_h_to_4h(x).chunk(2, dim=-1)
        return self.dense_4h_to_h(nn.functional.silu(gate) * up)


class GLMBlock(nn.Module):
    def __init__(self, config: ChatGLMConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, past_key_values: DynamicCache | None
    ) -> Tensor:
        x = x + self.self_attention(self.input_layernorm(x), rotary, mask, past_key_values)
        return x + self.mlp(self.post_attention_layernorm(x))


class GLMTransformer(nn.Module):
    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GLMBlock(config, layer) for layer in range(config.num_layers))
        self.final_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, past_key_values: DynamicCache | None
    ) -> Tensor:
        for layer in self.layers:
            x = layer(x, rotary, mask, past_key_values)
        return self.final_layernorm(x)


class Embedding(nn.Module):
    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.word_embeddings(input_ids)


class ChatGLMPreTrainedModel(PreTrainedModel):
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["GLMBlock"]  # noqa: RUF012 - the name and type that transformers reads
    _skip_keys_device_placement = "past_key_values"


class ChatGLMModel(ChatGLMPreTrainedModel):
    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.embedding = Embedding(config)
        self.rotary_pos_emb = RotaryEmbedding(config.kv_channels // 2)
        self.encoder = GLMTransformer(config)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.word_embeddings

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values
        if cache is None and use_cache:
            cache = DynamicCache()
        past = 0 if cache is None else cache.get_seq_length()
        columns = torch.arange(past + x.shape[1], device=x.device)
        if position_ids is None:
            position_ids = columns[None, past:]
        allowed = (columns <= columns[past:, None])[None, None]
        if attention_mask is not None:
            allowed = allowed & attention_mask[:, None, None, :].bool()
        mask = torch.zeros(allowed.shape, dtype=x.dtype, device=x.device)
        mask = mask.masked_fill(~allowed, torch.finfo(x.dtype).min)
        x = self.encoder(x, self.rotary_pos_emb(position_ids), mask, cache)
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=cache)


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel):
    """No `get_output_embeddings`, like the 6B model's own code: the output layer lies inside the base model."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        out = self.transformer(input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, use_cache)
        logits = self.transformer.output_layer(out.last_hidden_state)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)
