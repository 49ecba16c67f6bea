"""The quantized linear as a torch module, and the tensors it is stored as."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ops.quant.base import ActivationGrid, QuantizedWeight, dequantization, int8_linear

STORED = ("weight", "input_scale", "input_offset", "quant_bias", "deq_scale")


class Int8Linear(nn.Module):
    """An `nn.Linear` [n, k] that runs the deployed int8 arithmetic; outputs have the dtype of its inputs.

    `dtype` is the model's, in which the input scale and the redundant float bias are stored.
    """

    weight: Tensor  # int8 [n, k]
    quant_bias: Tensor  # int32 [n]
    deq_scale: Tensor  # float32 [n] or [1]
    bias: Tensor | None  # [n], kept for tools that read it; the arithmetic has it in quant_bias

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        self.grid = ActivationGrid(1.0, 0)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("quant_bias", torch.zeros(weight.shape[0], dtype=torch.int32, device=weight.device))
        self.register_buffer("deq_scale", torch.ones(1, device=weight.device))

    def set_grid(self, weight: QuantizedWeight, grid: ActivationGrid) -> None:
        """Fix the input grid and fold scales and bias for it."""
        self.grid = grid
        self.deq_scale, self.quant_bias = dequantization(weight, self.bias, grid)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        return int8_linear(x, self.weight, self.grid, self.quant_bias, self.deq_scale)

    def stored(self) -> dict[str, Tensor]:
        """The tensors of the W8A8S file format, by suffix.

        deq_scale is the float32's bits in the low word of an int64 (the fixed-point operator's format), or plain
        float32 in a bfloat16 model; scale and offset of the input have the model's dtype.
        """
        deq_scale = self.deq_scale
        if self.dtype != torch.bfloat16:
            deq_scale = deq_scale.view(torch.int32).to(torch.int64)  # positive floats: the sign bit is 0
        stored = {
            "weight": self.weight,
            "input_scale": torch.tensor([self.grid.scale], dtype=self.dtype),
            "input_offset": torch.tensor([self.grid.offset], dtype=self.dtype),
            "quant_bias": self.quant_bias,
            "deq_scale": deq_scale,
        }
        return stored if self.bias is None else {**stored, "bias": self.bias.to(self.dtype)}

    @classmethod
    def from_stored(cls, stored: Mapping[str, Tensor]) -> Int8Linear:
        """The module that `stored` was made from; ValueError when a tensor is missing or has another shape."""
        missing = [suffix for suffix in STORED if suffix not in stored]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
        weight, deq_scale = stored["weight"], stored["deq_scale"]
        rows = weight.shape[0]
        if weight.dtype != torch.int8 or weight.ndim != 2 or stored["quant_bias"].shape != (rows,):
            raise ValueError("does not hold an int8 matrix with one quant_bias a row")
        if deq_scale.shape not in ((rows,), (1,)):
            raise ValueError(f"deq_scale has shape {tuple(deq_scale.shape)}, allowed: ({rows},) or (1,)")
        module = cls(weight, stored.get("bias"), stored["input_scale"].dtype)
        if deq_scale.dtype == torch.int64:
            deq_scale = deq_scale.to(torch.int32).view(torch.float32)
        module.deq_scale = deq_scale.to(torch.float32)
        module.quant_bias = stored["quant_bias"]
        module.grid = ActivationGrid(float(stored["input_scale"]), int(stored["input_offset"]))
        return module
