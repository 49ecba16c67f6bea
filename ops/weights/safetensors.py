"""Tensors of a .safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

DTYPES = {  # of the header; others are those of quantized weights
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
}  # fmt: skip


class SafetensorsFile:
    """Memory-mapped: what is not read takes no memory."""

    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")

    def headers(self) -> dict[str, Tensor]:
        """Every tensor by name, on the meta device."""
        parts = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 - it is no mapping
        return {
            name: torch.empty(part.get_shape(), dtype=DTYPES.get(part.get_dtype(), torch.uint8), device="meta")
            for name, part in parts.items()
        }

    def read(self, name: str) -> Tensor:
        """The numbers of one tensor."""
        tensor: Tensor = self._file.get_tensor(name)
        return tensor
