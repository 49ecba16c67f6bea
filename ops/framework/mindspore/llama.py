"""LLaMA as a MindSpore network: RMSNorm, rotary positions, grouped-query attention, a key-value cache of fixed size.

Cells and parameters have the names of the transformers model, so both frameworks read each other's safetensors and
name layers alike. `construct` holds nothing that depends on values, so one compilation serves every call of a shape.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from slimrun.ops.framework.mindspore.compiled import attend, gated, normalize, project

Cache = Sequence[tuple[Tensor, ...]]  # keys and values, of every layer one [B, heads, S, D]
Advance = Callable[..., tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]]  # as Backbone.construct

CHUNK = 64  # tokens of the prompts that are run at once
WIDTH = 256  # columns by which a cache grows
STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # frequencies that do not depend on the text's length


class Embedding(nn.Cell):
    """Rows of a table, in the table's own dtype."""

    def __init__(self, rows: int, width: int, dtype: Any) -> None:
        super().__init__()
        self.weight = Parameter(initializer("zeros", (rows, width), dtype), name="weight", requires_grad=False)

    def construct(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> [B, T, H]."""
        return ops.gather(self.weight, ids, 0)


class Linear(nn.Dense):
    """A Dense whose product is one compiled call in PyNative too, where the operator alone takes 10 ms."""

    def construct(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        return project(x, self.weight.value(), self.bias.value() if self.has_bias else None)


class RMSNorm(nn.Cell):
    """x / rms(x) * weight, computed in float32."""

    def __init__(self, width: int, epsilon: float, dtype: Any) -> None:
        super().__init__()
        self.weight = Parameter(ops.ones((width,), dtype), name="weight", requires_grad=False)
        self.epsilon = epsilon

    def construct(self, x: Tensor) -> Tensor:
        """x [B, T, H] -> [B, T, H]."""
        return normalize(x, self.weight.value(), self.epsilon)


class Attention(nn.Cell):
    """Causal attention of many query heads on few key heads, over a cache or over the call's own tokens."""

    def __init__(self, config: Any, dtype: Any) -> None:
        super().__init__()
        self.head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.queries, self.keys = config.num_attention_heads, config.num_key_value_heads
        self.scale = self.head**-0.5
        bias = bool(config.attention_bias)
        self.q_proj = linear(config.hidden_size, self.queries * self.head, bias, dtype)
        self.k_proj = linear(config.hidden_size, self.keys * self.head, bias, dtype)
        self.v_proj = linear(config.hidden_size, self.keys * self.head, bias, dtype)
        self.o_proj = linear(self.queries * self.head, config.hidden_size, bias, dtype)

    def construct(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, columns: Tensor, keys: Any = None, values: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, H], mask [B, 1, T, S] to add -> (x, keys, values) with what was written at `columns` [B, T]."""
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        mixed, keys, values = attend(self.head, query, key, value, cos, sin, mask, columns, keys, values)
        return self.o_proj(mixed), keys, values


class MLP(nn.Cell):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Any, dtype: Any) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, bool(config.mlp_bias)
        self.gate_proj = linear(width, inner, bias, dtype)
        self.up_proj = linear(width, inner, bias, dtype)
        self.down_proj = linear(inner, width, bias, dtype)

    def construct(self, x: Tensor) -> Tensor:
        """x [B, T, H] -> [B, T, H]."""
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))


class Layer(nn.Cell):
    """Attention and MLP, each on the normalized input and added to it."""

    def __init__(self, config: Any, dtype: Any) -> None:
        super().__init__()
        self.self_attn = Attention(config, dtype)
        self.mlp = MLP(config, dtype)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def construct(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, columns: Tensor, keys: Any = None, values: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Attention`."""
        mixed, keys, values = self.self_attn(self.input_layernorm(x), cos, sin, mask, columns, keys, values)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class Backbone(nn.Cell):
    """Everything below the output head."""

    def __init__(self, config: Any, dtype: Any) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.CellList([Layer(config, dtype) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        frequencies, self.rope_scale = rope(config)
        self.frequencies = Tensor(frequencies)

    def construct(
        self, ids: Tensor, columns: Tensor, keys: Any = None, values: Any = None
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """States [B, T, H] before the output head, and the cache.

        A token stands at its column: that is its position, where its key is written, and it sees the columns up to
        its own. Padding on the right is therefore never seen, and needs no mask.
        """
        width = ids.shape[1] if keys is None else keys[0].shape[2]
        x = self.embed_tokens(ids)
        cos, sin, mask = self.beside(columns, width, x.dtype)
        new_keys: tuple[Tensor, ...] = ()
        new_values: tuple[Tensor, ...] = ()
        for index, layer in enumerate(self.layers):
            if keys is None:
                x, key, value = layer(x, cos, sin, mask, columns)
            else:
                x, key, value = layer(x, cos, sin, mask, columns, keys[index], values[index])
                new_keys, new_values = (*new_keys, key), (*new_values, value)
        return self.norm(x), new_keys, new_values

    def beside(self, columns: Tensor, width: int, dtype: Any) -> tuple[Tensor, Tensor, Tensor]:
        """What every layer is given of tokens at these columns [B, T] of a cache of `width`: cos, sin and the mask."""
        angles = columns.astype(ms.float32).expand_dims(2) * self.frequencies
        angles = ops.concat((angles, angles), 2).expand_dims(1)
        cos = (ops.cos(angles) * self.rope_scale).astype(dtype)
        sin = (ops.sin(angles) * self.rope_scale).astype(dtype)
        hidden = ops.arange(width).reshape(1, 1, 1, width) > columns.expand_dims(1).expand_dims(3)
        return cos, sin, hidden.astype(ms.float32) * float(np.finfo(np.float32).min)


class Llama(nn.Cell):
    """A causal language model of the shape that a transformers LlamaConfig describes, its weights zero."""

    def __init__(self, config: Any, dtype: Any = ms.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.model = Backbone(config, dtype)
        self.lm_head = linear(config.hidden_size, config.vocab_size, False, dtype)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.set_train(False)

    def construct(self, input_ids: Tensor) -> Tensor:
        """Logits [B, T, V] of tokens [B, T]."""
        return self.lm_head(self.model(input_ids, columns_of(input_ids))[0])

    def new_cache(self, batch: int, width: int) -> Cache:
        """An empty cache of `width` columns: keys and values."""
        attention = self.model.layers[0].self_attn
        empty = ops.zeros((batch, attention.keys, width, attention.head), self.dtype)
        return (empty,) * len(self.model.layers), (empty,) * len(self.model.layers)

    def generate(
        self, input_ids: Any, max_new_tokens: int = 20, stop: Collection[int] = (), advance: Advance | None = None
    ) -> list[list[int]]:
        """Greedy continuations of a batch of prompts (rows of tokens), without the token of `stop` that ends them.

        `advance` is the backbone to call, by default this one, on the prompts as they are; a compiled one is compiled
        for the prompts, which go in chunks, and for a token, not for each token.
        """
        prompts = rows_of(input_ids)
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        chunk = CHUNK if advance else int(lengths.max())
        width = -(-int(lengths.max()) // chunk) * chunk
        ids = np.array([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], np.int32)
        columns = np.broadcast_to(np.arange(width, dtype=np.int32), ids.shape)
        cache: Cache = self.new_cache(len(prompts), -(-(width + max_new_tokens) // WIDTH) * WIDTH)
        parts = []
        for start in range(0, width, chunk):
            part = slice(start, start + chunk)
            states, cache = self._advance(advance, ids[:, part], columns[:, part], cache)
            parts.append(states)
        ends = np.concatenate(parts, axis=1)[np.arange(len(prompts)), lengths - 1]
        answers: list[list[int]] = [[] for _ in prompts]
        going = set(range(len(prompts)))
        for step in range(max_new_tokens):
            token = self.lm_head(Tensor(ends)).asnumpy().argmax(axis=-1).astype(np.int32)
            going -= {row for row in going if int(token[row]) in stop}
            for row in going:
                answers[row].append(int(token[row]))
            if not going or step + 1 == max_new_tokens:
                break
            states, cache = self._advance(advance, token[:, None], (lengths + step)[:, None], cache)
            ends = states[:, 0]
        return answers

    def _advance(self, advance: Advance | None, ids: Any, columns: Any, cache: Cache) -> tuple[Any, Cache]:
        """(states [B, T, H] in numpy, cache) of tokens at their columns."""
        halves = (ms.mutable(half) for half in cache)
        states, *cache = (advance or self.model)(Tensor(ids.copy()), Tensor(columns.copy()), *halves)
        return states.asnumpy(), cache


def linear(inputs: int, outputs: int, bias: bool, dtype: Any) -> Linear:
    """A linear that starts at zero: its weights are loaded."""
    return Linear(inputs, outputs, weight_init="zeros", bias_init="zeros", has_bias=bias, dtype=dtype)


def rows_of(input_ids: Any) -> list[list[int]]:
    """Rows of tokens, of one length (array or Tensor [B, T]) or several; ValueError for another rank."""
    if isinstance(input_ids, Tensor):
        input_ids = input_ids.asnumpy()
    if isinstance(input_ids, np.ndarray):
        if input_ids.ndim != 2 or input_ids.dtype.kind not in "iu":
            raise ValueError(
                f"input_ids is {input_ids.dtype} {input_ids.shape}, expected whole numbers [batch, tokens]"
            )
        input_ids = input_ids.tolist()
    return [list(row) for row in input_ids]


def columns_of(ids: Tensor) -> Tensor:
    """0, 1, 2, ... for every row of ids [B, T]."""
    return ops.broadcast_to(ops.arange(ids.shape[1]).astype(ms.int32).expand_dims(0), ids.shape)


def rope(config: Any) -> tuple[np.ndarray[Any, Any], float]:
    """(frequencies float32 [D / 2], factor of cos and sin); ValueError for a kind that changes with the length."""
    parameters = dict(config.rope_parameters)
    kind = str(parameters.get("rope_type", "default"))
    if kind not in STATIC_ROPE:
        raise ValueError(f"rope_type={kind} is not built for MindSpore; allowed: {', '.join(STATIC_ROPE)}")
    if kind == "default":
        head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        exponents = np.arange(0, head, 2, dtype=np.int64).astype(np.float32) / np.float32(head)
        return (1.0 / np.float32(parameters["rope_theta"]) ** exponents).astype(np.float32), 1.0
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    return frequencies.numpy(), float(factor)
