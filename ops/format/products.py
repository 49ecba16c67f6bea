"""The dtype in which large products are taken where bfloat16 says enough: sums are float32 either way."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def for_products(tensor: Tensor) -> Tensor:
    """Floats or integers in the dtype in which float32 ones are multiplied, and float16 ones on a CPU."""
    return tensor.to(torch.bfloat16 if fast_bfloat16(tensor.device.type) else torch.float32)


@cache
def fast_bfloat16(device: str) -> bool:
    """Whether products of bfloat16 are faster than those of float32 there."""
    if device == "cpu":  # no public call says so
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device != "cuda" or torch.cuda.is_bf16_supported()
