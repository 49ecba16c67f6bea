"""ChatGLM2 and ChatGLM3 as models of transformers: what THUDM/chatglm2-6b brings as remote code, with no code to trust.

Configs, parameters and files have the names of the original; logits are held against its own code. `auto.py`
tells transformers' Auto classes, which then take these, whatever `trust_remote_code` says.
Architecture: Zeng et al. 2022 (GLM-130B), Shazeer 2019 (multi-query attention), Shazeer 2020 (SwiGLU).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import DynamicCache, GenerationMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.deprecation import deprecate_kwarg

ROTARY_BASE = 10000
NOT_BUILT = {"fp32_residual_connection": False, "quantization_bit": 0, "pre_seq_len": None, "rope_ratio": 1}

RESCALED = (
    ", ChatGLM2-6B's and ChatGLM3-6B's (GLM-4 and the models of 32k tokens have others; of GLM-4 give the conversion "
    "that transformers has itself, such as THUDM/glm-4-9b-chat-hf)"
)


class ChatGLMConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers brings no types
    """The keys of the original's config.json; those that only say how its code computes are kept and not read."""

    model_type = "chatglm"
    attribute_map = {  # noqa: RUF012 - transformers reads it so
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "max_position_embeddings": "seq_length",
    }

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128  # of a head
    num_attention_heads: int = 32
    seq_length: int = 2048
    layernorm_epsilon: float = 1e-5
    rmsnorm: bool = True
    apply_residual_connection_post_layernorm: bool = False
    post_layer_norm: bool = True
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    multi_query_attention: bool = False
    multi_query_group_num: int = 1
    use_cache: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **others: Any) -> None:
        """ValueError names a key whose value is not built here."""
        others.pop("auto_map", None)  # the code it names is not needed
        for key, built in NOT_BUILT.items():
            if others.get(key, built) not in (built, None):
                hint = RESCALED if key == "rope_ratio" else ""
                raise ValueError(f"config.json: {key}={others[key]} is not built; allowed: {built}{hint}")
        super().__post_init__(**others)

    @property
    def groups(self) -> int:
        """Heads that have keys and values of their own."""
        return self.multi_query_group_num if self.multi_query_attention else self.num_attention_heads


class SelfAttention(nn.Module):
    """Causal attention of many query heads on few key heads, projected by one fused linear."""

    def __init__(self, config: ChatGLMConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.groups, self.width = config.num_attention_heads, config.groups, config.kv_channels
        self.fused_by_head = not config.multi_query_attention
        bias = config.add_bias_linear or config.add_qkv_bias
        self.query_key_value = nn.Linear(config.hidden_size, (self.heads + 2 * self.groups) * self.width, bias=bias)
        self.dense = nn.Linear(self.heads * self.width, config.hidden_size, bias=config.add_bias_linear)

    def forward(self, x: Tensor, mask: Tensor | None, turn: tuple[Tensor, Tensor], cache: Any = None) -> Tensor:
        """x [B, T, H] -> [B, T, H]; `turn` as `turns` gives it."""
        query, key, value = (part.transpose(1, 2) for part in self._split(self.query_key_value(x)))
        query, key = turned(query, *turn), turned(key, *turn)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        key, value = (part.repeat_interleave(self.heads // self.groups, 1) for part in (key, value))
        causal = mask is None and x.shape[1] > 1
        mixed = scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
        out: Tensor = self.dense(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, mixed: Any) -> tuple[Tensor, ...]:
        """Queries [B, T, heads, D], keys and values [B, T, groups, D]."""
        if self.fused_by_head:
            return tuple(mixed.unflatten(-1, (self.heads, 3 * self.width)).split(self.width, -1))
        sizes = [self.heads * self.width, self.groups * self.width, self.groups * self.width]
        return tuple(part.unflatten(-1, (-1, self.width)) for part in mixed.split(sizes, -1))


class MLP(nn.Module):
    """down(silu(gate) * up), gate and up projected by one fused linear."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=config.add_bias_linear)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=config.add_bias_linear)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, H] -> [B, T, H]."""
        gate, up = self.dense_h_to_4h(x).chunk(2, dim=-1)
        out: Tensor = self.dense_4h_to_h(silu(gate) * up)
        return out


class GLMBlock(nn.Module):
    """Attention and MLP, each on the normalized input and added to it, or to what was normalized."""

    def __init__(self, config: ChatGLMConfig, layer: int) -> None:
        super().__init__()
        self.adds_to_normalized = config.apply_residual_connection_post_layernorm
        self.input_layernorm = norm(config)
        self.self_attention = SelfAttention(config, layer)
        self.post_attention_layernorm = norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, turn: tuple[Tensor, Tensor], cache: Any = None) -> Tensor:
        """x [B, T, H] -> [B, T, H]."""
        normalized = self.input_layernorm(x)
        x = (normalized if self.adds_to_normalized else x) + self.self_attention(normalized, mask, turn, cache)
        normalized = self.post_attention_layernorm(x)
        out: Tensor = (normalized if self.adds_to_normalized else x) + self.mlp(normalized)
        return out


class Embedding(nn.Module):
    """Holds the table under the name that the original gives it."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> [B, T, H]."""
        rows: Tensor = self.word_embeddings(ids)
        return rows


class GLMTransformer(nn.Module):
    """The blocks, and the norm after the last."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GLMBlock(config, layer) for layer in range(config.num_layers))
        self.final_layernorm = norm(config) if config.post_layer_norm else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None, turn: tuple[Tensor, Tensor], cache: Any = None) -> Tensor:
        """x [B, T, H] -> [B, T, H]."""
        for block in self.layers:
            x = block(x, mask, turn, cache)
        out: Tensor = self.final_layernorm(x)
        return out


class ChatGLMPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers asks of both models."""

    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["GLMBlock"]  # noqa: RUF012 - transformers reads it so
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq"]  # noqa: RUF012 - in the 6B model's files, unread


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Hidden states of tokens; the output layer lies in here, but is applied by the model around."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.embedding = Embedding(config)
        self.encoder = GLMTransformer(config)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of words."""
        return self.embedding.word_embeddings

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, H]; attention_mask [B, seen + T] is 0 where there is padding.

        The mask comes second, as in all of transformers and as scripts for msModelSlim give it; the original takes
        positions there.
        """
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device).unsqueeze(0)
        mask = create_causal_mask(self.config, x, attention_mask, cache, position_ids)
        turn = turns(position_ids, self.config.kv_channels // 2, x.dtype)
        return BaseModelOutputWithPast(last_hidden_state=self.encoder(x, mask, turn, cache), cache=cache)


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Logits of tokens, and generation."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The output layer, which lies in the base model."""
        return self.transformer.output_layer

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        logits_to_keep: int | Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of the last `logits_to_keep` tokens (0: of all); the rest as the base model takes it."""
        out = self.transformer(input_ids, attention_mask, position_ids, cache, **others)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.transformer.output_layer(out.last_hidden_state[:, kept])
        return CausalLMOutputWithPast(logits=logits, cache=out.cache)


def norm(config: ChatGLMConfig) -> nn.Module:
    """A norm of the config's kind."""
    return (nn.RMSNorm if config.rmsnorm else nn.LayerNorm)(config.hidden_size, eps=config.layernorm_epsilon)


def turns(positions: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, T, width / 2] of each pair's angle at the positions [B, T] (Su et al. 2021).

    Angles are products in `dtype`, as the original computes them: float16 positions beyond 2048 are rounded there too.
    """
    exponents = torch.arange(0, width, 2, dtype=dtype, device=positions.device) / width
    angles = (positions.to(dtype).unsqueeze(-1) * (1.0 / ROTARY_BASE**exponents)).float().unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, heads, T, D], its first half turned by pairs of neighbours; the second half knows no position."""
    width = 2 * cos.shape[-1]
    first, second = x[..., 0:width:2], x[..., 1:width:2]
    pairs = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((pairs.flatten(-2), x[..., width:]), dim=-1)
