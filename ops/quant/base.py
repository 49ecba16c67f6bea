"""What every method shares: the knobs, and how weights are put on an int8 grid.

A weight matrix W [n, k] becomes int8 integers q and a float32 step per row, so that W ~ q * step. What a deployed
model computes with them is `slimrun.ops.format.arithmetic`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor

from slimrun.ops.errors import nearest
from slimrun.ops.format.arithmetic import INT8_LEVELS, QuantizedWeight, activation_grid, quantize_activation
from slimrun.ops.format.weights import extremes, round_to_grid

OBSERVERS = ("auto", "minmax", "histogram")
TABLES = ("int8",)  # what embeddings and output head can be, but float
NORMAL_LEVELS = 7  # the positive half of a 4-bit grid


@dataclass(frozen=True)
class Quantizer:
    """Knobs that every method has; a method adds its own and implements `quantize_weight`."""

    procedure: ClassVar[str] = "sequential"  # of `slimrun.ops.calibration`, which finds it by this name
    needs_gradients: ClassVar[bool] = False  # of the float model's outputs
    ranks_by: ClassVar[str] = "range_parameter"  # which field of a `Layer` says what falls back first

    ignore: list[str] = field(default_factory=list)
    ignore_last_linear: bool = True
    fallback_level: int = 0
    samples: int = 16  # calibration prompts that a run takes where it is not told how many
    embeddings: str | None = None  # of TABLES: embeddings and output head, each row with a step; None: float

    def __post_init__(self) -> None:
        """Validate the knobs; ValueError names the key, the value and what is allowed."""
        for name, low in (("fallback_level", 0), ("samples", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; allowed: {low} or more")
        if self.embeddings is not None and self.embeddings not in TABLES:
            raise ValueError(f"embeddings={self.embeddings} is not known; allowed: {', '.join(TABLES)}, or null: float")
        if self.embeddings is not None and not self.ignore_last_linear:
            raise ValueError(
                f"embeddings={self.embeddings} takes the output head too, and ignore_last_linear=false gives it to the "
                "method; allowed: one of them"
            )

    @property
    def quant_type(self) -> str:
        """Name of the format in the description file; "FLOAT" quantizes nothing."""
        raise NotImplementedError

    @property
    def input_observer(self) -> str:
        """Which observer fixes the range of each linear's input; "" where inputs need no calibration."""
        return ""

    @property
    def smooths_norms(self) -> bool:
        """Whether the spread of channels is moved into the weights first, through the norms."""
        return False

    @property
    def shifts_norms(self) -> bool:
        """Whether that may give a norm, and a linear, a bias that it has not."""
        return True

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

    def round_inputs(self, inputs: Tensor, low: float, high: float) -> Tensor:
        """What a linear is given of float32 inputs [m, k] that were calibrated from low to high: one grid for all."""
        grid = activation_grid(low, high, torch.float32)
        return (quantize_activation(inputs, grid).to(torch.float32) - grid.offset) * grid.scale

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
        """Those of all linears (in module order) that the method covers; ValueError when all of them would be float."""
        ignored = self.ignored(names)
        covered = [name for name in names if name not in ignored]
        if not covered:
            first = ", ".join([*list(names)[:3], *(["..."] if len(names) > 3 else [])])
            raise ValueError(
                f"ignore=[{','.join(self.ignore)}] with "
                f"quant.ignore_last_linear={str(self.ignore_last_linear).lower()} leaves nothing to quantize: "
                f"linear layers (torch.nn.Linear, nn.Dense) are {first or 'none'}; "
                "keep fewer float, or take quant=none"
            )
        if self.fallback_level >= len(covered):
            raise ValueError(
                f"fallback_level={self.fallback_level} leaves nothing to quantize: the method covers {len(covered)} "
                f"linear layers; allowed: 0 to {len(covered) - 1}, or take quant=none"
            )
        return covered


@dataclass(frozen=True)
class StaticQuantizer(Quantizer):
    """A method with static activations: calibration fixes the range of each linear's input."""

    observer: str = "auto"
    reciprocal_scale: bool = False

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        super().__post_init__()
        if self.observer not in OBSERVERS:
            raise ValueError(f"observer={self.observer} is not known; allowed: {', '.join(OBSERVERS)}")

    @property
    def input_observer(self) -> str:
        """The observer that the knob names."""
        return self.observer

    def clips_first(self, name: str) -> bool:
        """Whether the input range of a linear leaves out the first token of each calibration prompt."""
        return False


@dataclass(frozen=True)
class MinMaxQuantizer(Quantizer):
    """8-bit weights: step = max|w| / 127 of the row (`per_channel`) or of the tensor."""

    per_channel: bool = True

    def expected_bits(self, shape: tuple[int, int]) -> float:
        """The largest weight, of each row or of all, is on 127."""
        return gaussian_bits(largest_of(shape[1] if self.per_channel else math.prod(shape)), INT8_LEVELS)

    def quantize_weight(self, weight: Tensor) -> QuantizedWeight:
        """Integers in [-127, 127] of a weight [n, k]."""
        check_matrix(weight)
        scale = minmax_scale(weight, self.per_channel)
        return QuantizedWeight(round_to_grid(weight, scale), scale)


def check_finite(weight: Tensor) -> Tensor:
    """Return the weight [n, k] as float32; ValueError when it is no matrix or holds NaN or infinity."""
    check_matrix(weight)
    return weight.detach().to(torch.float32)


def check_matrix(weight: Tensor) -> None:
    """ValueError when the weight is no matrix [n, k] or holds NaN or infinity."""
    if weight.ndim != 2:
        raise ValueError(f"a weight must have 2 dimensions, this one has {weight.ndim}")
    ends = torch.stack(torch.aminmax(weight.detach())) if weight.numel() else weight  # both carry a NaN
    if not bool(torch.isfinite(ends.to(torch.float32)).all()):
        raise ValueError("the weight holds NaN or infinity and cannot be quantized")


def minmax_scale(weight: Tensor, per_channel: bool, levels: int = INT8_LEVELS) -> Tensor:
    """Step float32 that maps the largest magnitude to `levels`: [n, 1] by row, or [1, 1] for the whole tensor.

    A zero row takes the tensor's step; a zero tensor takes 1 / levels.
    """
    _, largest = extremes(weight)
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
