"""What every method shares: the knobs, the int8 grid and the arithmetic that the deployed model runs.

A weight matrix W [n, k] becomes int8 integers q and a float32 step per row, so that W ~ q * step. Activations are
quantized statically, one scale and offset per tensor:

    xq  = clamp(round(x / input_scale) + input_offset, -128, 127)            int8
    acc = xq @ q.T + quant_bias                                              int32, exact
    y   = acc * deq_scale                                                    float

with deq_scale = input_scale * step and quant_bias = round(bias / deq_scale - input_offset * sum_k q).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from ops import _native

OBSERVERS = ("auto", "minmax", "histogram")
EXACT_FLOAT32_DEPTH = 1024  # 1024 * 128 * 127 < 2**24: a float32 sum of that many products is exact


@dataclass(frozen=True)
class Quantizer:
    """Knobs that every method has; a method adds its own and implements `quantize_weight`."""

    quant_type: ClassVar[str] = ""  # name of the format in the description file; "FLOAT" quantizes nothing

    observer: str = "auto"
    ignore: list[str] = field(default_factory=list)
    ignore_last_linear: bool = True
    fallback_level: int = 0

    def __post_init__(self) -> None:
        """Validate the knobs; ValueError names the key, the value and what is allowed."""
        if self.observer not in OBSERVERS:
            raise ValueError(f"observer={self.observer} is not known; allowed: {', '.join(OBSERVERS)}")
        if self.fallback_level < 0:
            raise ValueError(f"fallback_level={self.fallback_level} is out of range; allowed: 0 or more")

    def quantize_weight(self, weight: Tensor) -> QuantizedWeight:
        """Quantize one weight matrix [n, k] (any float dtype) on the device it is on."""
        raise NotImplementedError

    def ignored(self, names: Sequence[str]) -> set[str]:
        """Names of linears (in module order) that stay float because the user or the last-linear rule says so.

        `ignore` holds full names or globs (`*.layers.0.*`). ValueError names an entry that matches nothing.
        """
        ignored: set[str] = set()
        for pattern in self.ignore:
            matches = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
            if not matches:
                raise ValueError(f"ignore=[{pattern}] matches no linear layer of the model{_nearest(pattern, names)}")
            ignored.update(matches)
        if self.ignore_last_linear and names:
            ignored.add(names[-1])
        return ignored


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers and step of one weight matrix: weight ~ values * scale."""

    values: Tensor  # int8 [n, k]
    scale: Tensor  # float32 [n, 1], or [1, 1] when the method uses one step a tensor


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
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weight holds NaN or infinity and cannot be quantized")
    return weight


def round_to_grid(weight: Tensor, scale: Tensor, bound: int = 127) -> Tensor:
    """int8 integers clamp(round_half_even(weight / scale), -bound, bound); weight [n, k], scale [n, 1] or [1, 1]."""
    return (weight / scale).round_().clamp_(-bound, bound).to(torch.int8)


def activation_grid(low: float, high: float, dtype: torch.dtype) -> ActivationGrid:
    """Asymmetric 8-bit grid that covers [low, high] and zero; the scale is rounded to the model's dtype.

    The dtype matters: the scale is stored in it, so the device, our evaluation and deq_scale must all use the
    rounded number. Source: per-tensor asymmetric activation quantization as in msModelSlim's W8A8S.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    exact = max((high - low) / 255, torch.finfo(torch.float32).eps)
    offset = round(-low / exact) - 128
    scale = float(torch.tensor(exact, dtype=dtype))
    return ActivationGrid(scale, max(-128, min(127, offset)))


def dequantization(weight: QuantizedWeight, bias: Tensor | None, grid: ActivationGrid) -> tuple[Tensor, Tensor]:
    """(deq_scale float32 [n] or [1], quant_bias int32 [n]) of a linear with this weight, bias [n] and input grid.

    The product of the scales is formed in float32: forming it in float16, as the original does, makes it subnormal
    for small steps and costs up to 2 %.
    """
    deq_scale = (weight.scale.to(torch.float32) * grid.scale).reshape(-1)
    row_sums = weight.values.sum(dim=1, dtype=torch.int32)
    correction = row_sums.to(torch.float64) * -grid.offset
    if bias is not None:
        correction = correction + bias.detach().to(torch.float64) / deq_scale.to(torch.float64)
    limit = 2**31 - 1
    return deq_scale, correction.round().clamp(-limit, limit).to(torch.int32)


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

    `torch._int_mm` where it exists and is exact, else `exact_matmul`. On CUDA it wants more than 16 rows and
    multiples of 8, which padding gives.
    """
    rows, depth = x.shape
    if depth == 1 or not has_exact_int8_product(x.device.type):  # torch 2.13 returns zeros for k = 1 on the CPU
        return exact_matmul(x, weight)
    if x.device.type == "cuda":
        out = weight.shape[0]
        x = torch.nn.functional.pad(x, (0, -depth % 8, 0, max(17 - rows, -rows % 8)))
        weight = torch.nn.functional.pad(weight, (0, -depth % 8, 0, -out % 8))
        return torch._int_mm(x, weight.t())[:rows, :out]
    return torch._int_mm(x, weight.t())


@cache
def has_exact_int8_product(device: str) -> bool:
    """Whether `torch._int_mm` works on the device and does not saturate.

    Tried at the extremes: on x86 without VNNI instructions a product of pairs may saturate at 16 bits.
    """
    extremes = torch.tensor([-128, 127, 127, -128], dtype=torch.int8, device=device).repeat(32, 16)
    try:
        return torch.equal(torch._int_mm(extremes, extremes.t()), exact_matmul(extremes, extremes))
    except (RuntimeError, NotImplementedError):
        return False


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
    return dequantize(total, quant_bias, deq_scale).to(x.dtype).reshape(*x.shape[:-1], -1)


def _nearest(pattern: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
    return f"; near it: {', '.join(near)}" if near else f"; the first are: {', '.join(list(names)[:3])}"
