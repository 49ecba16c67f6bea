"""What the layers of `llama.py` compute, compiled.

In PyNative these functions run by themselves, in a graph they are part of it. They are given values instead of
parameters: for each parameter they would be compiled anew.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, ops


@ms.jit
def normalize(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x [B, T, H] / rms(x) * weight [H]."""
    wide = x.astype(ms.float32)
    scaled = wide * ops.rsqrt(ops.mean(wide * wide, -1, True) + epsilon)
    return weight * scaled.astype(x.dtype)


@ms.jit
def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., k] times weight [n, k] transposed, and bias [n]."""
    rows = ops.MatMul(transpose_b=True)(x.reshape(-1, x.shape[-1]), weight)
    if bias is not None:
        rows = rows + bias
    return rows.reshape((*x.shape[:-1], weight.shape[0]))


@ms.jit
def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return ops.silu(gate) * up


@ms.jit
def attend(
    head: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    columns: Tensor,
    keys: Any,
    values: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of query [B, T, heads * head] on key and value, or on the cache once these are written to it."""
    batch, length, _ = query.shape
    query = rotate(heads_first(query, head), cos, sin)
    key = rotate(heads_first(key, head), cos, sin)
    value = heads_first(value, head)
    if keys is not None:
        at = ops.broadcast_to(columns.reshape(batch, 1, length, 1), key.shape)
        key = ops.tensor_scatter_elements(keys, at, key, 2)
        value = ops.tensor_scatter_elements(values, at, value, 2)
    # the query heads that share a key head stand below each other, so that no key is copied
    rows = query.reshape(batch, key.shape[1], -1, head)
    scores = ops.matmul(rows, key.swapaxes(-1, -2)) * (head**-0.5)
    scores = scores.reshape(batch, query.shape[1], length, -1).astype(ms.float32) + mask
    weights = ops.softmax(scores, -1).astype(query.dtype).reshape(batch, key.shape[1], rows.shape[2], -1)
    mixed = ops.matmul(weights, value).reshape(query.shape)
    return mixed.swapaxes(1, 2).reshape(batch, length, -1), key, value


def heads_first(x: Tensor, head: int) -> Tensor:
    """[B, T, heads * head] -> [B, heads, T, head]."""
    return x.reshape(x.shape[0], x.shape[1], -1, head).swapaxes(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of x [B, heads, T, D]; cos and sin [B, 1, T, D]. The halves of a head are the pairs."""
    half = x.shape[-1] // 2
    turned = ops.concat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin
