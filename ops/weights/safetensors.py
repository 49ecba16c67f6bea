"""Tensors of a .safetensors file. Source of the format: https://github.com/huggingface/safetensors, "Format"."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
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
NAMES = {torch.uint8: "U8"} | {dtype: name for name, dtype in DTYPES.items()}  # what a writer calls them
WRITTEN = ("BOOL", "U8", "I8", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")  # the last come first: the widest
ALIGNMENT = 8  # of the first tensor, by spaces after the header


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


def write(
    path: Path, headers: Mapping[str, Tensor], read: Callable[[str], Tensor], done: Callable[[Iterable[Tensor]], None]
) -> None:
    """Write tensors (dense, on the CPU) as they are read, `done` with each once it is written.

    `headers` tell their dtypes and shapes. The bytes are those of `save_file`, which would have all tensors in memory
    at its end, mapped ones too.
    """
    order = sorted(headers, key=lambda name: (-WRITTEN.index(NAMES[headers[name].dtype]), name.encode()))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + headers[name].nbytes
        shape = list(headers[name].shape)
        header[name] = {"dtype": NAMES[headers[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = read(name)
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            done([tensor])
