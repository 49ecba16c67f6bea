"""How far a model's predictions move when nothing but rounding changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

NOISE = 1e-6  # of what the embeddings give; of a coarser dtype its last digit


@contextmanager
def noisy(module: Any, seed: int, size: float | None = None) -> Iterator[None]:
    """Meanwhile what the embeddings give is multiplied by 1 + noise of that size, `noise_of` their dtype if None."""
    generator = torch.Generator().manual_seed(seed)

    def disturb(_: Any, __: Any, out: Tensor) -> Tensor:
        noise = torch.randn(out.shape, generator=generator).to(out.device) * (size or noise_of(out.dtype))
        return (out.float() * (1 + noise)).to(out.dtype)

    handle = module.get_input_embeddings().register_forward_hook(disturb)
    try:
        yield
    finally:
        handle.remove()


def noise_of(dtype: torch.dtype) -> float:
    """Size of the noise, as a share of what it moves."""
    return max(NOISE, torch.finfo(dtype).eps)
