"""The dtypes in which large products are taken: sums are float32 either way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

AT_ONCE = 2**20  # weights that are widened at once: they stay in the processor's cache
FEW = 8  # tokens for which widening the weights would take longer than the product
TALL = 1024  # rows of a float32 matrix that MKL multiplies at once without losing time: 49152 take up to twice as long


def for_products(tensor: Tensor) -> Tensor:
    """Floats or integers in the dtype in which float32 ones are multiplied, and float16 ones on a CPU."""
    return tensor.to(torch.bfloat16 if fast_bfloat16(tensor.device.type) else torch.float32)


@cache
def fast_bfloat16(device: str) -> bool:
    """Whether products of bfloat16 are faster than those of float32 there."""
    if device == "cpu":  # no public call says so
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device != "cuda" or torch.cuda.is_bf16_supported()


@cache
def slow(dtype: torch.dtype) -> bool:
    """Whether torch has no kernel for products of this dtype on this CPU, and multiplies number by number.

    Processors without AVX-512 FP16 (most) have none for float16, those without AVX-512 none for bfloat16.
    """
    name = {torch.float16: "_is_mkldnn_fp16_supported", torch.bfloat16: "_is_mkldnn_bf16_supported"}.get(dtype)
    supported: Any = getattr(torch.ops.mkldnn, name, None) if name else None  # no public call says so
    return supported is not None and not supported()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., k] times weight [n, k] transposed, plus bias [n]: [..., n] in the dtype of x.

    Of more than a FEW tokens on a CPU some rows of the weight at a time: a TALL float32 matrix is multiplied faster so,
    and where the dtype is slow, float32 products of the same numbers are taken and rounded once.
    """
    few = x.device.type != "cpu" or x.numel() < FEW * x.shape[-1]
    if few or not (slow(x.dtype) or (x.dtype == torch.float32 and len(weight) > TALL)):
        return nn.functional.linear(x, weight, bias)
    wide, rows = x.float(), TALL if x.dtype == torch.float32 else max(1, AT_ONCE // weight.shape[1])
    biases: Sequence[Tensor | None] = [None] * len(weight) if bias is None else torch.split(bias.float(), rows)
    room = None  # memory that is new for each part would have to be cleared for each; the way back needs all of them
    if weight.dtype != torch.float32 and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        room = weight.new_empty(min(rows, len(weight)), weight.shape[1], dtype=torch.float32)
    parts = [
        nn.functional.linear(wide, part.float() if room is None else room[: len(part)].copy_(part), more).to(x.dtype)
        for part, more in zip(torch.split(weight, rows), biases)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def fast_linears(dtype: torch.dtype, device: torch.device, *, tall: bool = False) -> AbstractContextManager[object]:
    """Meanwhile whatever calls `torch.nn.functional.linear` gets `linear`; nothing where numbers are not slow there.

    `tall`: also where they are not, for a matrix of many rows.
    """
    return _FastLinears(tall) if device.type == "cpu" and (tall or slow(dtype)) else nullcontext()


class _FastLinears(TorchFunctionMode):
    def __init__(self, tall: bool) -> None:
        super().__init__()
        self.tall = tall

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.linear and (self.tall or slow(args[0].dtype)):
            func = linear
        return func(*args, **(kwargs or {}))
