"""A tiny LLaMA with the names and the Linear of mindformers, as a user of the guide has it."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from slimrun.ops.model.tokenizer import byte_tokenizer

WIDTH, INNER, HEADS, VOCABULARY, LAYERS = 64, 128, 4, 259, 2
RANDOM = np.random.default_rng(0)


class Linear(nn.Cell):
    """What `mindformers.modules.layers.Linear` looks like from outside."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        weight = RANDOM.normal(0, 0.1, (out_channels, in_channels)).astype(np.float32)
        self.weight = Parameter(Tensor(weight), name="weight")
        self.transpose_b = True
        self.has_bias = False
        self.activation_flag = False
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        rows = self.matmul(x.reshape(-1, x.shape[-1]), self.weight)
        if self.has_bias:
            rows = self.bias_add(rows, self.bias)
        return rows.reshape((*x.shape[:-1], self.weight.shape[0]))


class Norm(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter(ops.ones(WIDTH, ms.float32), name="weight")

    def construct(self, x: Tensor) -> Tensor:
        return x * ops.rsqrt(ops.mean(x * x, -1, True) + 1e-5) * self.weight


class Attention(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (Linear(WIDTH, WIDTH) for _ in range(4))

    def construct(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = (
            linear(x).reshape(batch, length, HEADS, -1).swapaxes(1, 2) for linear in (self.wq, self.wk, self.wv)
        )
        scores = ops.matmul(query, key.swapaxes(-1, -2)) * (WIDTH / HEADS) ** -0.5
        seen = ops.tril(ops.ones((length, length), ms.float32))
        mixed = ops.matmul(ops.softmax(scores + (seen - 1) * 1e9, -1), value)
        return self.wo(mixed.swapaxes(1, 2).reshape(batch, length, WIDTH))


class FeedForward(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = Linear(WIDTH, INNER), Linear(INNER, WIDTH), Linear(WIDTH, INNER)

    def construct(self, x: Tensor) -> Tensor:
        return self.w2(ops.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = Norm(), Norm()
        self.attention, self.feed_forward = Attention(), FeedForward()

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Model(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.CellList([Layer() for _ in range(LAYERS)])
        self.norm_out = Norm()

    def construct(self, ids: Tensor) -> Tensor:
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm_out(x)


class TinyLlama(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.lm_head = Linear(WIDTH, VOCABULARY)

    def construct(self, input_ids: Tensor) -> Tensor:
        return self.lm_head(self.model(input_ids))


class TinyLlamaForCausalLM(TinyLlama):
    def generate(self, input_ids: Any, max_new_tokens: int) -> Tensor:
        ids = Tensor(input_ids)
        for _ in range(max_new_tokens):
            token = self(ids)[:, -1:].argmax(-1).astype(ids.dtype)
            ids = ops.concat((ids, token), 1)
        return ids


def load_model_and_tokenizer() -> tuple[nn.Cell, Any]:
    return TinyLlamaForCausalLM(), byte_tokenizer()
