"""What every method shares: the knobs, the int8 grid and the arithmetic that the deployed model runs.

A weight matrix W [n, k] becomes int8 integers q and a float32 step per row, so that W ~ q * step. Most methods
quantize activations statically, one scale and offset per tensor:

    xq  = clamp(round(x / input_scale) + input_offset, -128, 127)            int8
    acc = xq @ q.T + quant_bias                                              int32, exact
    y   = acc * deq_scale                                                    float

with deq_scale = input_scale * step and quant_bias = round(bias / deq_scale - input_offset * sum_k q). Dynamic
methods take a symmetric scale of each token instead, weight-only methods leave activations float.
"""

from __future__ import annotations

import difflib
import math
import timeit
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor

from slimrun.ops import _native

OBSERVERS = ("auto", "minmax", "histogram")
NORMAL_LEVELS = 7  # the positive half of a 4-bit grid
INT8_LEVELS = 127
INT32_MAX = 2**31 - 1
LEAST_ROOM = 2**24  # of a bias in int32, however long the sums are
EXACT_FLOAT32_DEPTH = 1024  # 1024 * 128 * 127 < 2**24: a float32 sum of that many products is exact


@dataclass(frozen=True)
class Quantizer:
    """Knobs that every method has; a method adds its own and implements `quantize_weight`."""

    needs_gradients: ClassVar[bool] = False  # of the float model's outputs
    ranks_by: ClassVar[str] = "range_parameter"  # which field of a `Layer` says what falls back first

    ignore: list[str] = field(default_factory=list)
    ignore_last_linear: bool = True
    fallback_level: int = 0

    def __post_init__(self) -> None:
        """Validate the knobs; ValueError names the key, the value and what is allowed."""
        if self.fallback_level < 0:
            raise ValueError(f"fallback_level={self.fallback_level} is out of range; allowed: 0 or more")

    @property
    def quant_type(self) -> str:
        """Name of the format in the description file; "FLOAT" quantizes nothing."""
        raise NotImplementedError

    @property
    def statistics(self) -> str:
        """What the calibrator measures on the float model."""
        return "float statistics"

    @property
    def levels(self) -> int:
        """The largest magnitude of an integer."""
        return INT8_LEVELS

    def quantize_weight(self, weight: Tensor) -> QuantizedWeight:
        """Quantize one weight matrix [n, k] (any float dtype) on the device it is on."""
        raise NotImplementedError

    def expected_bits(self, shape: tuple[int, int]) -> float:
        """Entropy of the integers of gaussian weights of this shape, in bits a weight: what coding would store."""
        return 8.0

    def ignored(self, names: Sequence[str]) -> set[str]:
        """Names of linears (in module order) that stay float because the user or the last-linear rule says so.

        `ignore` holds full names or globs (`*.layers.0.*`). ValueError names an entry that matches nothing.
        """
        ignored: set[str] = set()
        for pattern in self.ignore:
            matches = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
            if not matches:
                raise ValueError(f"ignore=[{pattern}] matches no linear layer of the model{nearest(pattern, names)}")
            ignored.update(matches)
        if self.ignore_last_linear and names:
            ignored.add(names[-1])
        return ignored

    def covered(self, names: Sequence[str]) -> list[str]:
        """Those of all linears (in module order) that the method covers; ValueError when all of them stay float."""
        ignored = self.ignored(names)
        found = [name for name in names if name not in ignored]
        if not found:
            first = ", ".join([*list(names)[:3], *(["..."] if len(names) > 3 else [])])
            raise ValueError(
                f"ignore=[{','.join(self.ignore)}] with ignore_last_linear={str(self.ignore_last_linear).lower()} "
                f"leaves nothing to quantize: linear layers (torch.nn.Linear, nn.Dense) are {first or 'none'}; "
                "keep fewer float, or take quant=none"
            )
        return found


@dataclass(frozen=True)
class StaticQuantizer(Quantizer):
    """A method with static activations: calibration fixes the range of each linear's input."""

    observer: str = "auto"

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        super().__post_init__()
        if self.observer not in OBSERVERS:
            raise ValueError(f"observer={self.observer} is not known; allowed: {', '.join(OBSERVERS)}")


@dataclass(frozen=True)
class MinMaxQuantizer(Quantizer):
    """8-bit weights: step = max|w| / 127 of the row (`per_channel`) or of the tensor."""

    per_channel: bool = True

    def expected_bits(self, shape: tuple[int, int]) -> float:
        """The largest weight, of each row or of all, is on 127."""
        return gaussian_bits(largest_of(shape[1] if self.per_channel else math.prod(shape)), INT8_LEVELS)

    def quantize_weight(self, weight: Tensor) -> QuantizedWeight:
        """Integers in [-127, 127] of a weight [n, k]."""
        weight = check_finite(weight)
        scale = minmax_scale(weight, self.per_channel)
        return QuantizedWeight(round_to_grid(weight, scale), scale)


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers and step of one weight matrix: weight ~ values * scale."""

    values: Tensor  # int8 [n, k]
    scale: Tensor  # float32 [n, 1], or [1, 1] when the method uses one step a tensor

    @cached_property
    def row_sums(self) -> Tensor:
        """int32 [n]: what the input offset is multiplied with."""
        return self.values.sum(dim=1, dtype=torch.int32)


@dataclass(frozen=True)
class ActivationGrid:
    """Static per-tensor int8 grid of a linear's input: x ~ (xq - offset) * scale."""

    scale: float
    offset: int


def check_finite(weight: Tensor) -> Tensor:
    """Return the weight [n, k] as float32; ValueError when it is no matrix or holds NaN or infinity."""
    if weight.ndim != 2:
        raise ValueError(f"a weight must have 2 dimensions, this one has {weight.ndim}")
    weight = weight.detach().to(torch.float32)
    if weight.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(weight))).all()):  # both carry a NaN
        raise ValueError("the weight holds NaN or infinity and cannot be quantized")
    return weight


def round_to_grid(weight: Tensor, scale: Tensor, low: int = -127, high: int = 127) -> Tensor:
    """int8 integers clamp(round_half_even(weight / scale), low, high); weight [n, k], scale [n, 1] or [1, 1]."""
    return (weight / scale).round_().clamp_(low, high).to(torch.int8)


def minmax_scale(weight: Tensor, per_channel: bool, levels: int = INT8_LEVELS) -> Tensor:
    """Step float32 that maps the largest magnitude to `levels`: [n, 1] by row, or [1, 1] for the whole tensor.

    A zero row takes the tensor's step; a zero tensor takes 1 / levels.
    """
    largest = weight.abs().amax(dim=1, keepdim=True)
    tensor_largest = largest.amax(dim=0, keepdim=True)
    if not per_channel:
        largest = tensor_largest
    scale = torch.where(largest > 0, largest, tensor_largest) / levels
    return torch.where(scale > 0, scale, torch.full_like(scale, 1 / levels))


def gaussian_bits(reach: float, levels: int) -> float:
    """Entropy in bits of gaussian weights on a grid that maps `reach` standard deviations to `levels` steps.

    Differential entropy less the logarithm of the step; good to 1 % for steps up to one and a half deviations.
    """
    return 0.5 * math.log2(2 * math.pi * math.e) + math.log2(levels / reach)


def largest_of(count: int) -> float:
    """Typical largest magnitude among `count` gaussian numbers, in standard deviations."""
    return NormalDist().inv_cdf(1 - 1 / (2 * count + 2))


def outliers_from(fraction: float) -> float:
    """Magnitude that a `fraction` of gaussian numbers exceeds, in standard deviations."""
    return NormalDist().inv_cdf(1 - fraction / 2)


def activation_grid(low: float, high: float, dtype: torch.dtype) -> ActivationGrid:
    """Asymmetric 8-bit grid that covers [low, high] and zero; the scale is rounded to the model's dtype.

    The dtype matters: the scale is stored in it, so the device, our evaluation and deq_scale must all use the
    rounded number. In float32 throughout. Source: per-tensor asymmetric quantization as in msModelSlim's W8A8S.
    """
    bounds = torch.tensor([min(low, 0.0), max(high, 0.0)])
    exact = ((bounds[1] - bounds[0]) / 255).clamp_min(torch.finfo(torch.float32).eps)
    offset = int((-bounds[0] / exact).round()) - 128
    return ActivationGrid(float(exact.to(dtype)), max(-128, min(127, offset)))


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
        _native.quantize_into(x.contiguous().numpy(), grid.scale, grid.offset, out.numpy())
        return out
    return (x / grid.scale).round_().add_(grid.offset).clamp_(-128, 127).to(torch.int8)


def dequantize(total: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Tensor:
    """float32 [m, n] of int32 sums [m, n]: (total + quant_bias [n]) * deq_scale [n] or [1]."""
    if total.device.type == "cpu":
        out = torch.empty(total.shape, dtype=torch.float32)
        _native.dequantize_into(total.numpy(), quant_bias.numpy(), deq_scale.numpy(), out.numpy())
        return out
    return total.add(quant_bias).to(torch.float32).mul_(deq_scale)


def int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Exact int32 product of int8 x [m, k] and int8 weight [n, k] transposed: [m, n].

    `torch._int_mm` where it exists, is exact and no detour, else `exact_matmul`. On CUDA it wants more than 16 rows and
    multiples of 8, which padding gives.
    """
    rows, depth = x.shape
    if depth == 1 or not has_int8_product(x.device.type):  # torch 2.13 returns zeros for k = 1 on the CPU
        return exact_matmul(x, weight)
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
    times slower than float32, which gives the same integers.
    """
    extremes = torch.tensor([-128, 127, 127, -128], dtype=torch.int8, device=device).repeat(128, 256)

    def integers() -> Tensor:
        return torch._int_mm(extremes, extremes.t())

    def floats() -> Tensor:
        return exact_matmul(extremes, extremes)

    try:
        if not torch.equal(integers(), floats()):
            return False
    except (RuntimeError, NotImplementedError):
        return False
    # twice: a moment's noise must not turn the answer of a machine that has the instructions
    return device != "cpu" or min(timeit.repeat(integers, number=1)) < 2 * min(timeit.repeat(floats, number=1))


def exact_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`int8_matmul` from float32 products over slices of k that are short enough to be exact."""
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.int32, device=x.device)
    for start in range(0, x.shape[1], EXACT_FLOAT32_DEPTH):
        part = slice(start, start + EXACT_FLOAT32_DEPTH)
        total += (x[:, part].float() @ weight[:, part].float().t()).to(torch.int32)
    return total


def int8_linear(x: Tensor, weight: Tensor, grid: ActivationGrid, quant_bias: Tensor, deq_scale: Tensor) -> Tensor:
    """The deployed linear: float x [..., k] -> float [..., n] in x's dtype, by the formulas of this module."""
    quantized = quantize_activation(x.reshape(-1, x.shape[-1]), grid)
    total = int8_matmul(quantized, weight)
    return dequantize(total, quant_bias, deq_scale).to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def dynamic_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """The deployed linear with dynamic activations: float x [..., k] -> [..., n] in x's dtype.

    Each token (row) has its own symmetric scale max|x| / 127. Source: msModelSlim's W8A8_DYNAMIC.
    """
    rows = x.detach().reshape(-1, x.shape[-1]).to(torch.float32)
    scale = (rows.abs().amax(dim=1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).eps)
    total = int8_matmul((rows / scale).round_().to(torch.int8), weight)
    out = total.to(torch.float32).mul_(scale).mul_(weight_scale.to(torch.float32).reshape(1, -1))
    if bias is not None:
        out += bias
    return out.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def nearest(pattern: str, names: Sequence[str]) -> str:
    """End of an error line: which names come near the one that is not there."""
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
    return f"; near it: {', '.join(near)}" if near else f"; the first are: {', '.join(list(names)[:3])}"
