"""Tensors of MindSpore as tensors of torch and back, without copying on the CPU."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import torch
from mindspore import Tensor

DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}


def to_torch(tensor: Any) -> torch.Tensor:
    """The same numbers as a torch tensor; numpy, which stands between, has no bfloat16."""
    if tensor.dtype == ms.bfloat16:
        return torch.from_numpy(tensor.astype(ms.float32).asnumpy()).to(torch.bfloat16)
    return torch.from_numpy(tensor.asnumpy())


def from_torch(tensor: torch.Tensor) -> Tensor:
    """The same numbers as a MindSpore tensor."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return Tensor.from_numpy(tensor.float().numpy()).astype(ms.bfloat16)
    return Tensor.from_numpy(tensor.numpy())
