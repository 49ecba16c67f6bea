"""The arithmetic that the deployed model runs: int8 weights with a float32 step a row, and int8 inputs.

A weight matrix W [n, k] is int8 integers q and a float32 step per row, so that W ~ q * step. Most formats quantize
activations statically, one scale and offset per tensor:

    xq  = clamp(round(x / input_scale) + input_offset, -128, 127)            int8
    acc = xq @ q.T + quant_bias                                              int32, exact
    y   = acc * deq_scale                                                    float

with deq_scale = input_scale * step and quant_bias = round(bias / deq_scale - input_offset * sum_k q). Dynamic
formats take a symmetric scale of each token instead, weight-only formats leave activations float.
"""

from __future__ import annotations

import timeit
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from slimrun.ops import _native

from .weights import row_sums

INT8_LEVELS = 127
INT32_MAX = 2**31 - 1
LEAST_ROOM = 2**24  # of a bias in int32, however long the sums are
EXACT_FLOAT32_DEPTH = 1024  # 1024 * 128 * 127 < 2**24: a float32 sum of that many products is exact
FEWEST = 2  # rows of x for which calling torch's product takes longer than our own
FEW = 8  # rows of x for which making floats of the weight takes longer than the product
GROWTH = 1.05  # of an input scale, for a reciprocal that its dtype holds
RECIPROCALS = 128  # scales that are looked at: in float16 the 5 % are 51 to 102 numbers
LEAST_MISS = 0.002  # of a step: the least that every float16 has within the 5 %


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers and step of one weight matrix: weight ~ values * scale."""

    values: Tensor  # int8 [n, k]
    scale: Tensor  # float32 [n, 1], or [1, 1] when the method uses one step a tensor

    @cached_property
    def row_sums(self) -> Tensor:
        """int32 [n]: what the input offset is multiplied with."""
        return row_sums(self.values)


@dataclass(frozen=True)
class ActivationGrid:
    """Static per-tensor int8 grid of a linear's input: x ~ (xq - offset) * scale."""

    scale: float
    offset: int


def activation_grid(low: float, high: float, dtype: torch.dtype, *, reciprocal_scale: bool = False) -> ActivationGrid:
    """Asymmetric 8-bit grid that covers [low, high] and zero; the scale is rounded to the model's dtype.

    The dtype matters: the scale is stored in it, so the device, our evaluation and deq_scale must all use the
    rounded number. In float32 throughout. Source: per-tensor asymmetric quantization as in msModelSlim's W8A8S.
    With `reciprocal_scale` it is a little larger, see there.
    """
    bounds = torch.tensor([min(low, 0.0), max(high, 0.0)])
    exact = ((bounds[1] - bounds[0]) / 255).clamp_min(torch.finfo(torch.float32).eps)
    if reciprocal_scale:
        exact = with_reciprocal(exact.to(dtype)).float()
    offset = int((-bounds[0] / exact).round()) - 128
    return ActivationGrid(float(exact.to(dtype)), max(-128, min(127, offset)))


def with_reciprocal(scale: Tensor) -> Tensor:
    """The first scale from this one on, at most 5 % larger, that stands for division and multiplication alike.

    Ascend multiplies inputs by 1 / scale, rounded to the dtype of the scale (a tensor of one number). Taken is the
    first by which the outermost level of the grid is missed by no more than LEAST_MISS, else the best there is.
    """
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[scale.element_size()]
    numbers = (scale.view(words) + torch.arange(RECIPROCALS, dtype=words)).view(scale.dtype)
    numbers = numbers[numbers.float() <= GROWTH * scale.float()]
    missed = reciprocal_miss(numbers)
    good = (missed <= LEAST_MISS).nonzero()
    return numbers[good[0, 0] if len(good) else missed.argmin()]


def reciprocal(scale: Tensor) -> Tensor:
    """What a device multiplies by that divides by the scale: 1 / scale, rounded to the dtype of the scale."""
    return (1 / scale.float()).to(scale.dtype)


def reciprocal_miss(scale: Tensor) -> Tensor:
    """By how much of a step the outermost level is missed when 1 / scale is rounded to the dtype of the scale."""
    return (reciprocal(scale).double() * scale.double() - 1).abs() * INT8_LEVELS


def dequantization(weight: QuantizedWeight, bias: Tensor | None, grid: ActivationGrid) -> tuple[Tensor, Tensor]:
    """(deq_scale float32 [n] or [1], quant_bias int32 [n]) of a linear with this weight, bias [n] and input grid.

    The product of the scales is formed in float32: forming it in float16, as the original does, makes it subnormal
    for small steps and costs up to 2 %.
    """
    deq_scale = (weight.scale.to(torch.float32) * grid.scale).reshape(-1)
    correction = weight.row_sums.to(torch.float64) * -grid.offset
    if bias is not None:
        correction = correction + bias.detach().to(torch.float64) / deq_scale.to(torch.float64)
    return deq_scale, correction.round().clamp(-INT32_MAX, INT32_MAX).to(torch.int32)


def rows_beyond_int32(weight: QuantizedWeight, bias: Tensor | None, grid: ActivationGrid) -> Tensor | None:
    """bool [n]: rows whose bias, counted in steps of the output, leaves int32; None when there are none.

    Such are rows whose weights are tiny beside their bias: dead neurons, a shift that is kept in the bias.
    """
    if bias is None:
        return None
    steps = weight.scale.to(torch.float64).reshape(-1) * grid.scale
    beyond = bias.detach().to(torch.float64).abs() > steps * _room(weight)
    return beyond if bool(beyond.any()) else None


def with_larger_steps(weight: QuantizedWeight, bias: Tensor, grid: ActivationGrid, rows: Tensor) -> QuantizedWeight:
    """The weight with the step at which the bias [n] just fits int32 in `rows` (bool [n]), every other row as it is.

    That step times the input's is 2**-30 of the bias or less, so what the weights lose is beside it nothing.
    """
    steps = weight.scale.to(torch.float64).expand(len(rows), 1)
    needed = (bias.detach().to(torch.float64).abs() / (grid.scale * _room(weight))).reshape(-1, 1)
    larger = torch.where(rows.reshape(-1, 1), needed * (1 + 1e-6), steps)  # float32 must not round it below
    values = weight.values.clone()
    values[rows] = (values[rows] * (steps / larger)[rows]).round().to(torch.int8)
    return QuantizedWeight(values, larger.to(torch.float32))


def _room(weight: QuantizedWeight) -> int:
    """How far a bias can reach so that products of any input, the offset's correction and it sum up within int32."""
    return max(INT32_MAX - 256 * INT8_LEVELS * weight.values.shape[1], LEAST_ROOM)


def quantize_activation(x: Tensor, grid: ActivationGrid) -> Tensor:
    """int8 activations of x (any float dtype and shape). On the CPU in one pass (ops/csrc/int8.hpp), bits alike."""
    x = x.detach().to(torch.float32)
    if x.device.type == "cpu":
        out = torch.empty(x.shape, dtype=torch.int8)
        _native.quantize_into(numpy(x), grid.scale, grid.offset, out.numpy(), torch.get_num_threads())
        return out
    return (x / grid.scale).round_().add_(grid.offset).clamp_(-128, 127).to(torch.int8)


def dequantize(total: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Tensor:
    """float32 [m, n] of int32 sums [m, n]: (total + quant_bias [n]) * deq_scale [n] or [1]."""
    if total.device.type == "cpu":
        out = torch.empty(total.shape, dtype=torch.float32)
        operands = total.numpy(), quant_bias.numpy(), deq_scale.numpy(), out.numpy()
        _native.dequantize_into(*operands, torch.get_num_threads())
        return out
    return total.add(quant_bias).to(torch.float32).mul_(deq_scale)


def int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Exact int32 product of int8 x [m, k] and int8 weight [n, k] transposed: [m, n].

    `torch._int_mm` where it exists, is exact and no detour, else `own_matmul`. On CUDA it wants more than 16 rows and
    multiples of 8, which padding gives.
    """
    rows, depth = x.shape
    if depth == 1 or not has_int8_product(x.device.type):  # torch 2.13 returns zeros for k = 1 on the CPU
        return own_matmul(x, weight)
    if x.device.type == "cuda":
        out = weight.shape[0]
        x = torch.nn.functional.pad(x, (0, -depth % 8, 0, max(17 - rows, -rows % 8)))
        weight = torch.nn.functional.pad(weight, (0, -depth % 8, 0, -out % 8))
        return torch._int_mm(x, weight.t())[:rows, :out]
    return torch._int_mm(x, weight.t())


@cache
def has_int8_product(device: str) -> bool:
    """Whether `torch._int_mm` works on the device, does not saturate and, on a CPU, is worth calling.

    Tried at the extremes: on x86 without VNNI instructions a product of pairs may saturate at 16 bits, or run 20
    times slower than our own.
    """
    apart, alike = [-128, 127, 127, -128], [127, 127, -128, -128]  # in pairs: only those alike saturate
    extremes = torch.tensor([apart, alike], dtype=torch.int8, device=device).repeat(64, 256)

    def integers() -> Tensor:
        return torch._int_mm(extremes, extremes.t())

    def own() -> Tensor:
        return own_matmul(extremes, extremes)

    try:
        if not torch.equal(integers(), own()):
            return False
    except (RuntimeError, NotImplementedError):
        return False
    return device != "cpu" or min(timeit.repeat(integers, number=1)) < min(timeit.repeat(own, number=1))


def own_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`int8_matmul` without torch's: on a CPU ops/csrc/int8_product.hpp where that is fast, else `exact_matmul`."""
    if x.device.type != "cpu" or not own_product(len(x)):
        return exact_matmul(x, weight)
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.int32)
    _native.multiply_into(numpy(x), numpy(weight), out.numpy(), torch.get_num_threads())
    return out


def own_product(rows: int) -> bool:
    """Whether a CPU's product of so many rows is worth giving to ops/csrc."""
    return rows < FEW or _native.multiplies_fast()


def exact_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`int8_matmul` from float32 products over slices of k that are short enough to be exact."""
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.int32, device=x.device)
    for start in range(0, x.shape[1], EXACT_FLOAT32_DEPTH):
        part = slice(start, start + EXACT_FLOAT32_DEPTH)
        total += (x[:, part].float() @ weight[:, part].float().t()).to(torch.int32)
    return total


def int8_linear(x: Tensor, weight: Tensor, grid: ActivationGrid, quant_bias: Tensor, deq_scale: Tensor) -> Tensor:
    """The deployed linear: float x [..., k] -> float [..., n] in x's dtype, by the formulas of this module.

    In one pass where our own product is the one to take, else step by step, bits alike.
    """
    rows = x.detach().reshape(-1, x.shape[-1]).to(torch.float32)
    if one_pass(rows):
        out = torch.empty(len(rows), weight.shape[0])
        operands = numpy(weight), numpy(quant_bias), numpy(deq_scale), out.numpy()
        _native.static_linear_into(numpy(rows), grid.scale, grid.offset, *operands, torch.get_num_threads())
    else:
        total = int8_matmul(quantize_activation(rows, grid), weight)
        out = dequantize(total, quant_bias, deq_scale)
    return out.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def one_pass(rows: Tensor) -> bool:
    """Whether the linears of ops/csrc/int8_product.hpp are the fastest for x [m, k]."""
    fastest = len(rows) <= FEWEST or not has_int8_product("cpu")
    return rows.device.type == "cpu" and own_product(len(rows)) and fastest


def numpy(tensor: Tensor) -> Any:
    """A CPU tensor as native code wants it."""
    return tensor.detach().contiguous().numpy()


def token_scales(rows: Tensor) -> Tensor:
    """The step [m, 1] of each token of float32 rows [m, k]: max|x| / 127."""
    return (rows.abs().amax(dim=1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).eps)


def dynamic_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """The deployed linear with dynamic activations: float x [..., k] -> [..., n] in x's dtype.

    Each token (row) has its own symmetric scale. Source: msModelSlim's W8A8_DYNAMIC.
    """
    rows = x.detach().reshape(-1, x.shape[-1]).to(torch.float32)
    steps = weight_scale.to(torch.float32).reshape(-1)
    if one_pass(rows):
        out = torch.empty(len(rows), weight.shape[0])
        operands = numpy(weight), numpy(steps), None if bias is None else numpy(bias.to(torch.float32)), out.numpy()
        _native.dynamic_linear_into(numpy(rows), *operands, torch.get_num_threads())
    else:
        scale = token_scales(rows)
        total = int8_matmul((rows / scale).round_().to(torch.int8), weight)
        out = total.to(torch.float32).mul_(scale).mul_(steps)
        if bias is not None:
            out += bias
    return out.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])
