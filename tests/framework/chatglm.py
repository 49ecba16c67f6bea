"""A shrunken module with ChatGLM2-6B's parameter names: fused attention with bias, fused gate and up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HIDDEN, FFN, QKV, VOCABULARY, LAYERS = 32, 48, 40, 65, 2


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(HIDDEN, QKV, bias=True)
        self.dense = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.query_key_value(x)[..., :HIDDEN])


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(HIDDEN, 2 * FFN, bias=False)
        self.dense_4h_to_h = nn.Linear(FFN, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.dense_h_to_4h(x).chunk(2, dim=-1)
        return self.dense_4h_to_h(torch.nn.functional.silu(gate) * up)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attention = SelfAttention()
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attention(x)
        return x + self.mlp(x)


class ChatGLM(nn.Module):
    """`model(input_ids)` -> logits; linears are named transformer.encoder.layers.N..., last the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.transformer.output_layer = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.transformer.embedding(input_ids)
        for block in self.transformer.encoder.layers:
            x = block(x)
        return self.transformer.output_layer(x)
