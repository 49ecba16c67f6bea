"""The quantized linears as MindSpore cells: the parameters are those of `slimrun.ops.format.linear`.

On the CPU the integer product is torch's, called from PyNative and from inside a graph alike: MindSpore has none there
and takes several times as long for the same numbers in float32. Elsewhere it is the exact float32 product by slices.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
import numpy.typing as npt
import torch
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from slimrun.ops.format.arithmetic import EXACT_FLOAT32_DEPTH, ActivationGrid, dynamic_linear, int8_linear
from slimrun.ops.format.linear import DynamicInt8Linear, Int8Linear, Int8Table, QuantizedLinear, WeightOnlyLinear
from slimrun.ops.weights.mindspore import from_torch

Array = npt.NDArray[Any]
EPSILON = float(np.finfo(np.float32).eps)


class QuantizedCell(nn.Cell):
    """A linear [n, k] with int8 weights; `linear` is what it is stored as, in the same memory.

    `activation` is what the float cell applied to its output, None for nothing.
    """

    linear: QuantizedLinear

    def __init__(self, linear: QuantizedLinear, activation: Any = None) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation
        self.on_host = ms.get_context("device_target") == "CPU"
        self.weight = _parameter("weight", linear.weight)
        self._values = linear.weight  # what the parameter holds

    def update(self) -> None:
        """Take over what changed in `linear`: calibration moves its grid."""

    def finish(self, out: Tensor) -> Tensor:
        """The output, activated."""
        return out if self.activation is None else self.activation(out)


class StaticInt8(QuantizedCell):
    """W8A8S and W8A8: one grid of the input."""

    linear: Int8Linear

    def __init__(self, linear: Int8Linear, activation: Any = None) -> None:
        super().__init__(linear, activation)
        rows = linear.out_features
        self.input_scale = _parameter("input_scale", torch.ones(1))
        self.input_offset = _parameter("input_offset", torch.zeros(1, dtype=torch.int32))
        self.quant_bias = _parameter("quant_bias", torch.zeros(rows, dtype=torch.int32))
        self.deq_scale = _parameter("deq_scale", torch.ones(rows))
        self.host = ops.Custom(_host_static, _output_shape, _output_dtype, func_type="pyfunc")
        self.update()

    def update(self) -> None:
        """Take over grid, scales and bias."""
        linear = self.linear
        if linear.weight is not self._values:
            self.weight.set_data(from_torch(linear.weight))
            self._values = linear.weight
        self.input_scale.set_data(Tensor(np.array([linear.grid.scale], np.float32)))
        self.input_offset.set_data(Tensor(np.array([linear.grid.offset], np.int32)))
        self.quant_bias.set_data(from_torch(linear.quant_bias))
        self.deq_scale.set_data(from_torch(linear.deq_scale.expand(linear.out_features)))

    def construct(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        values = (self.weight, self.input_scale, self.input_offset, self.quant_bias, self.deq_scale)
        return self.finish(self.host(x, *values) if self.on_host else static_product(x, *values))


class DynamicInt8(QuantizedCell):
    """W8A8_DYNAMIC: a scale for each token."""

    def __init__(self, linear: DynamicInt8Linear, activation: Any = None) -> None:
        super().__init__(linear, activation)
        self.weight_scale = _parameter("weight_scale", _row_scales(linear))
        self.bias = _parameter("bias", _float_bias(linear))
        self.host = ops.Custom(_host_dynamic, _output_shape, _output_dtype, func_type="pyfunc")

    def construct(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        values = (self.weight, self.weight_scale, self.bias)
        return self.finish(self.host(x, *values) if self.on_host else dynamic_product(x, *values))


class WeightOnly(QuantizedCell):
    """W8A16: weights are dequantized for each product."""

    def __init__(self, linear: WeightOnlyLinear, activation: Any = None) -> None:
        super().__init__(linear, activation)
        self.weight_scale = _parameter("weight_scale", _row_scales(linear))
        self.bias = _parameter("bias", _float_bias(linear))

    def construct(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        weight = (self.weight.astype(ms.float32) * self.weight_scale.expand_dims(1)).astype(x.dtype)
        rows = ops.MatMul(transpose_b=True)(x.reshape(-1, x.shape[-1]), weight) + self.bias.astype(x.dtype)
        return self.finish(rows.reshape((*x.shape[:-1], weight.shape[0])))


class LookedUp(QuantizedCell):
    """W8_TABLE: rows are looked up by tokens, and multiplied with states."""

    def __init__(self, table: Int8Table) -> None:
        super().__init__(table)
        self.weight_scale = _parameter("weight_scale", table.weight_scale)
        self.bias = _parameter("bias", _float_bias(table))

    def construct(self, x: Tensor) -> Tensor:
        """Tokens [...] -> rows [..., H]; states [..., H] -> logits [..., V]."""
        if x.dtype == ms.int32:
            return ops.gather(self.weight, x, 0).astype(self.weight_scale.dtype) * ops.gather(self.weight_scale, x, 0)
        rows = ops.MatMul(transpose_b=True)(x.reshape(-1, x.shape[-1]), self.weight.astype(x.dtype))
        logits = rows * self.weight_scale.reshape(-1).astype(x.dtype) + self.bias.astype(x.dtype)
        return logits.reshape((*x.shape[:-1], self.weight.shape[0]))


def quantized_cell(name: str, linear: QuantizedLinear, activation: Any = None) -> QuantizedCell:
    """The cell that runs a quantized linear; its parameters are named after it."""
    cell: QuantizedCell
    if isinstance(linear, Int8Linear):
        cell = StaticInt8(linear, activation)
    elif isinstance(linear, Int8Table):
        cell = LookedUp(linear)
    elif isinstance(linear, DynamicInt8Linear):
        cell = DynamicInt8(linear, activation)
    else:
        assert isinstance(linear, WeightOnlyLinear)
        cell = WeightOnly(linear, activation)
    for parameter in cell.get_parameters():
        parameter.name = f"{name}.{parameter.name}"
    return cell


def static_product(x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor, bias: Tensor, deq_scale: Tensor) -> Tensor:
    """`slimrun.ops.format.arithmetic.int8_linear` in MindSpore's operators, bit for bit."""
    rows = x.reshape(-1, x.shape[-1]).astype(ms.float32)
    quantized = ops.clamp(ops.round(rows / scale) + offset.astype(ms.float32), -128, 127)
    out = (exact_product(quantized, weight) + bias).astype(ms.float32) * deq_scale
    return out.astype(x.dtype).reshape((*x.shape[:-1], weight.shape[0]))


def dynamic_product(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """`slimrun.ops.format.arithmetic.dynamic_linear` in MindSpore's operators."""
    rows = x.reshape(-1, x.shape[-1]).astype(ms.float32)
    scale = ops.maximum(ops.abs(rows).max(1, keepdims=True) / 127, Tensor(EPSILON, ms.float32))
    total = exact_product(ops.round(rows / scale), weight)
    out = total.astype(ms.float32) * scale * weight_scale + bias
    return out.astype(x.dtype).reshape((*x.shape[:-1], weight.shape[0]))


def exact_product(rows: Tensor, weight: Tensor) -> Tensor:
    """int32 [m, n] of whole numbers rows [m, k] (float32) and int8 weight [n, k], over slices short enough."""
    product = ops.MatMul(transpose_b=True)
    depth = weight.shape[1]
    total = product(rows[:, :EXACT_FLOAT32_DEPTH], weight[:, :EXACT_FLOAT32_DEPTH].astype(ms.float32)).astype(ms.int32)
    for start in range(EXACT_FLOAT32_DEPTH, depth, EXACT_FLOAT32_DEPTH):
        end = min(start + EXACT_FLOAT32_DEPTH, depth)
        total = total + product(rows[:, start:end], weight[:, start:end].astype(ms.float32)).astype(ms.int32)
    return total


def _host_static(x: Array, weight: Array, scale: Array, offset: Array, bias: Array, deq_scale: Array) -> Array:
    grid = ActivationGrid(float(scale[0]), int(offset[0]))
    host = torch.from_numpy
    return np.asarray(int8_linear(host(x), host(weight), grid, host(bias), host(deq_scale)).numpy())


def _host_dynamic(x: Array, weight: Array, weight_scale: Array, bias: Array) -> Array:
    host = torch.from_numpy
    return np.asarray(dynamic_linear(host(x), host(weight), host(weight_scale), host(bias)).numpy())


def _output_shape(x: list[int], weight: list[int], *_: list[int]) -> list[int]:
    return [*x[:-1], weight[0]]


def _output_dtype(x: Any, *_: Any) -> Any:
    return x


def _parameter(name: str, tensor: torch.Tensor) -> Parameter:
    values = from_torch(tensor)
    parameter = Parameter(initializer("zeros", values.shape, values.dtype), name=name, requires_grad=False)
    parameter.set_data(values)  # a Parameter that is made of values copies them
    return parameter


def _row_scales(linear: WeightOnlyLinear) -> torch.Tensor:
    """float32 [n]."""
    return linear.weight_scale.float().reshape(-1).expand(linear.out_features).contiguous()


def _float_bias(linear: QuantizedLinear) -> torch.Tensor:
    """float32 [n], zeros when there is none."""
    return torch.zeros(linear.out_features) if linear.bias is None else linear.bias.float()
