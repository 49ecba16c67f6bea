"""The quantized linears as torch modules, and the tensors they are stored as: one class a file format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from . import products
from .arithmetic import (
    ActivationGrid,
    QuantizedWeight,
    dequantization,
    dynamic_linear,
    int8_linear,
    rows_beyond_int32,
    with_larger_steps,
)
from .stored import scale_tensors, stored_grid, stored_scale

FLOAT = "FLOAT"  # what a description calls a tensor that is not quantized
FLOAT_CODED, INTEGERS_CODED = CODED_NUMBERS = ("FLOATC", "INTC")  # and those whose bytes are coded, bit for bit
TABLE_ROWS = 4096  # of a table that are floats at once: they stay in the processor's cache


class QuantizedLinear(nn.Module):
    """An `nn.Linear` [n, k] with int8 weights; outputs have the dtype of its inputs.

    `dtype` is the model's, in which scales and the float bias are stored.
    """

    quant_type: ClassVar[str]  # what a description calls the format
    suffixes: ClassVar[tuple[str, ...]] = ("weight",)  # of the tensors it cannot do without
    scale: ClassVar[str] = "weight_scale"  # which of them has the step of the weight
    has_grid: ClassVar[bool] = False  # whether calibration fixes a grid for the input

    weight: Tensor  # int8 [n, k]
    bias: Tensor | None  # [n]

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def set_weight(self, weight: QuantizedWeight) -> None:
        """Take the step of the weight."""
        raise NotImplementedError

    def stored(self) -> dict[str, Tensor]:
        """The tensors of the file format, by suffix."""
        stored = {"weight": self.weight}
        return stored if self.bias is None else {**stored, "bias": self.bias.to(self.dtype)}

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """Take the tensors that `stored` gave; ValueError when one has another shape or dtype."""
        raise NotImplementedError

    def floats(self) -> tuple[Tensor, Tensor | None]:
        """Weight [n, k] and bias [n] as float32."""
        raise NotImplementedError

    def _check_rows(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.numel() not in (1, self.out_features) or not tensor.dtype.is_floating_point:
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, allowed: floats, one or {self.out_features}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds NaN or infinity")
        return tensor


class Int8Linear(QuantizedLinear):
    """W8A8S: the deployed integer arithmetic with a static input grid."""

    quant_type = "W8A8S"
    suffixes: ClassVar[tuple[str, ...]] = ("weight", "input_scale", "input_offset", "quant_bias", "deq_scale")
    scale = "deq_scale"
    has_grid = True

    quant_bias: Tensor  # int32 [n]
    deq_scale: Tensor  # float32 [n] or [1]

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        self.grid = ActivationGrid(1.0, 0)
        self.raised_rows = 0  # rows with a larger step than the method's, so that int32 holds their bias
        self.register_buffer("quant_bias", torch.zeros(weight.shape[0], dtype=torch.int32, device=weight.device))
        self.register_buffer("deq_scale", torch.ones(1, device=weight.device))

    def set_weight(self, weight: QuantizedWeight) -> None:
        """The step waits for the input grid."""

    def set_grid(self, weight: QuantizedWeight, grid: ActivationGrid) -> None:
        """Fix the input grid and fold scales and bias for it."""
        self.grid = grid
        rows = rows_beyond_int32(weight, self.bias, grid)
        self.raised_rows = 0 if rows is None else int(rows.sum())
        if rows is not None and self.bias is not None:
            weight = with_larger_steps(weight, self.bias, grid, rows)
        self.weight = weight.values
        self.set_weight(weight)
        self.deq_scale, self.quant_bias = dequantization(weight, self.bias, grid)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        return int8_linear(x, self.weight, self.grid, self.quant_bias, self.deq_scale)

    def floats(self) -> tuple[Tensor, Tensor | None]:
        """Weight [n, k] and bias [n] as float32."""
        sums = self.weight.sum(dim=1, dtype=torch.int32)
        bias = (self.quant_bias + self.grid.offset * sums) * self.deq_scale
        return self.weight * (self.deq_scale.reshape(-1, 1) / self.grid.scale), bias

    def stored(self) -> dict[str, Tensor]:
        """Weight, input grid, and scales and bias folded for the fixed-point operator.

        deq_scale is the float32's bits in the low word of an int64 (the operator's format), or plain float32 in a
        bfloat16 model; scale and offset of the input have the model's dtype.
        """
        deq_scale = self.deq_scale
        if self.dtype != torch.bfloat16:
            deq_scale = deq_scale.view(torch.int32).to(torch.int64)  # positive floats: the sign bit is 0
        return {
            **super().stored(),
            "input_scale": torch.tensor([self.grid.scale], dtype=self.dtype),
            "input_offset": torch.tensor([self.grid.offset], dtype=self.dtype),
            "quant_bias": self.quant_bias,
            "deq_scale": deq_scale,
        }

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """Take the stored tensors."""
        deq_scale = stored["deq_scale"]
        if deq_scale.dtype == torch.int64:
            if bool((deq_scale >> 31).any()):
                raise ValueError("deq_scale is no float32 in the low words of an int64")
            deq_scale = deq_scale.to(torch.int32).view(torch.float32)
        self.deq_scale = self._check_rows("deq_scale", deq_scale).to(torch.float32)
        if stored["quant_bias"].shape != (self.out_features,) or stored["quant_bias"].dtype != torch.int32:
            raise ValueError("does not hold an int8 matrix with one quant_bias a row")
        self.quant_bias = stored["quant_bias"]
        self.grid = stored_grid(stored["input_scale"], stored["input_offset"])


class ScaledInt8Linear(Int8Linear):
    """W8A8: as W8A8S, and the weight's own step is stored too."""

    quant_type = "W8A8"
    suffixes = (*Int8Linear.suffixes, "weight_scale", "weight_offset")
    scale = "weight_scale"

    weight_scale: Tensor  # [n, 1] or [1]

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        self.register_buffer("weight_scale", torch.ones(1, dtype=dtype, device=weight.device))

    def set_weight(self, weight: QuantizedWeight) -> None:
        """Take the step of the weight."""
        self.weight_scale = stored_scale(weight, self.dtype)

    def stored(self) -> dict[str, Tensor]:
        """As W8A8S, with weight_scale and weight_offset."""
        return {**super().stored(), **scale_tensors(self.weight_scale)}

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """Take the stored tensors."""
        super().restore(stored)
        self.weight_scale = self._check_rows("weight_scale", stored["weight_scale"])


class WeightOnlyLinear(QuantizedLinear):
    """W8A16: weights are dequantized for each product, activations stay float."""

    quant_type = "W8A16"
    suffixes: ClassVar[tuple[str, ...]] = ("weight", "weight_scale", "weight_offset")

    weight_scale: Tensor  # [n, 1] or [1], in the dtype it is stored in: what runs is what is read back

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        self.register_buffer("weight_scale", torch.ones(1, dtype=dtype, device=weight.device))

    def set_weight(self, weight: QuantizedWeight) -> None:
        """Take the step of the weight."""
        self.weight_scale = stored_scale(weight, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        return float_product(self, x)

    def floats(self) -> tuple[Tensor, Tensor | None]:
        """Weight [n, k] and bias [n] as float32."""
        return self.weight * self.weight_scale.to(torch.float32), None if self.bias is None else self.bias.float()

    def stored(self) -> dict[str, Tensor]:
        """Weight, weight_scale and weight_offset."""
        return {**super().stored(), **scale_tensors(self.weight_scale)}

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """Take the stored tensors."""
        self.weight_scale = self._check_rows("weight_scale", stored["weight_scale"])


class DynamicInt8Linear(WeightOnlyLinear):
    """W8A8_DYNAMIC: integer products, the input scale is taken from each token."""

    quant_type = "W8A8_DYNAMIC"

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        return dynamic_linear(x, self.weight, self.weight_scale, self.bias)


class Int8Table(WeightOnlyLinear):
    """W8_TABLE: embeddings [V, H] as int8 rows with a step each, looked up by tokens and multiplied with states.

    Where embeddings are tied, the same module stands in both places.
    """

    quant_type = "W8_TABLE"
    suffixes = ("weight", "weight_scale")

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [...] -> rows [..., H]; states [..., H] -> logits [..., V]."""
        if not x.is_floating_point():
            return self.weight[x] * self.weight_scale[x]
        parts = [
            products.linear(x, rows.to(x.dtype)) * steps.reshape(-1).to(x.dtype)
            for rows, steps in zip(torch.split(self.weight, TABLE_ROWS), torch.split(self.weight_scale, TABLE_ROWS))
        ]
        logits = torch.cat(parts, dim=-1)
        return logits if self.bias is None else logits + self.bias.to(x.dtype)

    def stored(self) -> dict[str, Tensor]:
        """Weight and weight_scale."""
        return {**QuantizedLinear.stored(self), "weight_scale": self.weight_scale}

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """Take the stored tensors."""
        super().restore(stored)
        if self.weight_scale.shape != (self.out_features, 1):
            raise ValueError(f"has {self.weight_scale.numel()} steps, expected one of each of {self.out_features} rows")


FORMATS: dict[str, type[QuantizedLinear]] = {
    kind.quant_type: kind for kind in (Int8Linear, ScaledInt8Linear, DynamicInt8Linear, WeightOnlyLinear, Int8Table)
}


def quantized_linear(
    quant_type: str, weight: QuantizedWeight, bias: Tensor | None, dtype: torch.dtype
) -> QuantizedLinear:
    """The module that runs this weight in the format `quant_type`."""
    module = FORMATS[quant_type](weight.values, bias, dtype)
    module.set_weight(weight)
    return module


def restored_linear(quant_type: str, stored: Mapping[str, Tensor], shape: tuple[int, int] | None) -> QuantizedLinear:
    """The module that `stored()` was called on; ValueError when a tensor is missing or not what it has to be.

    `shape` is that of the float linear in the model, None when the model has none.
    """
    if quant_type not in FORMATS:
        raise ValueError(f"has the type {quant_type}; known: {', '.join(FORMATS)}")
    kind = FORMATS[quant_type]
    missing = [suffix for suffix in kind.suffixes if suffix not in stored]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    weight = stored["weight"]
    if weight.dtype != torch.int8 or weight.ndim != 2:
        raise ValueError("does not hold an int8 matrix with one quant_bias a row")
    if shape is None:
        raise ValueError("is no linear of the model")
    if weight.shape != shape:
        raise ValueError(f"has the shape {tuple(weight.shape)}, the model's has {shape}")
    bias = stored.get("bias")
    if bias is not None and (bias.shape != shape[:1] or not bias.is_floating_point()):
        raise ValueError(f"has a bias of {bias.dtype} and shape {tuple(bias.shape)}, expected {shape[0]} floats")
    scale = stored["input_scale" if kind.has_grid else kind.scale]  # both are in the model's dtype
    module = kind(weight, bias, scale.dtype)
    module.restore(stored)
    return module


def float_product(linear: QuantizedLinear, x: Tensor) -> Tensor:
    """x [..., k] times the dequantized weight, plus bias: [..., n]."""
    weight, bias = linear.floats()
    return products.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
