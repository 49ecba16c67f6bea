"""Rate-distortion optimized quantization: at a given coded size the integers that cost the model least.

The output is what W8A8S stores: int8 values, one step a row, static activations. What is chosen better:

- the loss of a weight error E [n, k] is estimated by Fisher information, sum_r g_r E_r H E_r^T, where H [k, k] is the
  second moment of the inputs, each token weighted by the gradient at the output, and g_r the squared gradient of row r
  (a Kronecker factorization: Martens and Grosse 2015);
- rounding feeds the error of each column forward to those that are still to be rounded, most important columns first
  (GPTQ, Frantar et al. 2022);
- inputs are scaled, and columns the other way, so that rounding and the input grid cost least where a norm takes the
  scale, and by their reach (SmoothQuant, Xiao et al. 2023) where the rows of another linear do;
- every row's step has the same slope of loss against bits, so that no bit could be spent better elsewhere (reverse
  water-filling: Cover and Thomas, chapter 10), but the largest weight of a row stays on the grid;
- of the two nearest levels the one with the smaller error + price * code length is taken (Sullivan and Wiegand 1998).

`slimrun.ops.calibration.rdoq` measures H and g, folds smoothing into the model, searches the slope that meets
the bits or the loss asked for, tunes the steps that were found and takes the grid from the inputs that lose most. What
linears lose beside each other is not left to the estimate: a first rounding is measured, and corrects it.

Every ingredient can be had without the others: `grid` takes the steps of another method, `activations=float` leaves
activations alone, `smooth_alpha=null`, `price=0`, `measured_prompts=0`, `tune_rate=0` and `fallback.max_share=0` switch
the rest off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor

from slimrun.ops.format.arithmetic import INT8_LEVELS, QuantizedWeight
from slimrun.ops.format.weights import round_to_grid

from .base import NORMAL_LEVELS, Quantizer, StaticQuantizer, check_finite
from .feedback import guarded

ACTIVATIONS = ("int8", "float")
DYNAMIC_INPUTS, FLOAT_INPUTS = "dynamic", "float"  # int8 with a step a token; as they are
INPUTS = [[FLOAT_INPUTS], [DYNAMIC_INPUTS], [DYNAMIC_INPUTS, FLOAT_INPUTS]]
FISHER, MOMENTS = "fisher", "inputs"  # what an error costs: by gradients too; by second moments of the inputs alone
SLOPE, ROW, TENSOR = "slope", "row", "tensor"  # a step where each row loses the same for a bit, or of a spread
BALANCED, WATERFILLED = "balanced", "waterfilled"  # scales of columns by all they do, or so that all cost the same
CHOICES = {
    "activations": ACTIVATIONS,
    "importance": (FISHER, MOMENTS),
    "steps": (SLOPE, ROW, TENSOR),
    "columns": (BALANCED, WATERFILLED),
}
BITS = 3.5  # coded, a weight, where nothing is asked for
GAUSSIAN_NOISE = math.pi * math.e / 6  # squared error of entropy-coded gaussian weights, times variance 4^-bits
SCALE_BITS = 32  # of a row's step
SIZES = ("target_bits", "target_kl", "target_file_bits", "grid")  # what says how large the result may be, one of them


@dataclass(frozen=True)
class Fallback:
    """Linears whose inputs have no grid: those that lose most on one, by the Fisher estimate of what is measured.

    They take the first of `inputs` on which they lose no more than the worst that keeps its grid, or the last one.
    """

    max_share: float = 0.01
    inputs: list[str] = field(default_factory=lambda: [FLOAT_INPUTS])

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        if self.inputs not in INPUTS:
            given, *allowed = (str(ladder).replace("'", "").replace(" ", "") for ladder in (self.inputs, *INPUTS))
            raise ValueError(f"inputs={given} is no order to try; allowed: {', '.join(allowed)}")
        if not 0.0 <= self.max_share <= 1.0:
            raise ValueError(f"max_share={self.max_share} is out of range; allowed: 0.0 to 1.0")


@dataclass(frozen=True)
class RDOQ(StaticQuantizer):
    """Knobs of rate-distortion optimized quantization.

    How large the result may be is said in one way: coded bits a weight of linears, bits a parameter of the weight file
    (embeddings and output head are rounded then too), the loss that is allowed, or steps as another method (`grid`)
    takes them, whose format the result then has.
    """

    procedure: ClassVar[str] = "rdoq"
    needs_gradients: ClassVar[bool] = True

    target_bits: float | None = None
    target_kl: float | None = None
    target_file_bits: float | None = None
    grid: Quantizer | None = None
    importance: str = FISHER
    steps: str = SLOPE
    activations: str = "int8"
    observer: str = "minmax"
    clip_first: list[str] = field(default_factory=lambda: ["*.down_proj", "*.dense_4h_to_h"])
    columns: str = BALANCED
    smooth_alpha: float | None = 0.75  # None: no smoothing
    price: float = 0.3
    damping: float = 0.2
    measured_prompts: int = 8
    fallback: Fallback = Fallback()
    tune_rate: float = 0.002
    samples: int = 24

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        super().__post_init__()
        given = [name for name in SIZES if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{given[0]} and quant.{given[1]} both say how large the result may be; allowed: one of them"
            )
        if self.target_file_bits is not None and (self.embeddings or not self.ignore_last_linear):
            raise ValueError(
                f"target_file_bits={self.target_file_bits} rounds embeddings and output head itself; "
                "allowed: embeddings=null with ignore_last_linear=true"
            )
        for name in ("ignore", "fallback_level", "do_smooth", "embeddings", "reciprocal_scale"):
            if getattr(self.grid, name, None):
                raise ValueError(
                    f"grid.{name}={getattr(self.grid, name)} has no effect, only steps are taken of a grid"
                )
        if self.grid is not None and self.grid.samples != type(self.grid).samples:
            raise ValueError(f"grid.samples={self.grid.samples} has no effect; allowed: quant.samples")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)} is not known; allowed: {', '.join(allowed)}")
        if self.importance == MOMENTS and (self.steps == SLOPE or self.target_file_bits is not None):
            lacking = f"steps={SLOPE}" if self.steps == SLOPE else f"target_file_bits={self.target_file_bits}"
            raise ValueError(f"{lacking} goes by gradients; allowed with importance={MOMENTS}: steps={ROW} or {TENSOR}")
        if self.columns == WATERFILLED and self.importance != MOMENTS:
            raise ValueError(f"columns={WATERFILLED} goes by second moments alone; allowed with importance={MOMENTS}")
        if self.fallback_level:
            raise ValueError(
                f"fallback_level={self.fallback_level} ranks by tails; "
                "allowed: 0 (quant.fallback.max_share ranks by measured loss)"
            )
        if self.observer == "auto":
            raise ValueError("observer=auto needs tails that this method does not measure; allowed: minmax, histogram")
        for name, low, high in (
            ("target_bits", 1.5, 7.0), ("target_file_bits", 1.5, 8.0), ("target_kl", 1e-3, 2.0),
            ("smooth_alpha", 0.0, 1.0), ("price", 0.0, 2.0), ("damping", 1e-6, 1.0),
            ("measured_prompts", 0, 1024), ("tune_rate", 0.0, 0.1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}={value} is out of range; allowed: {low} to {high}")

    @property
    def folds(self) -> bool:
        """Whether inputs are scaled, and columns the other way."""
        return self.smooth_alpha is not None or self.columns == WATERFILLED

    @property
    def bits(self) -> float | None:
        """Coded bits a weight to aim at; 3.5 when nothing else is asked for."""
        return BITS if all(getattr(self, name) is None for name in SIZES) else self.target_bits

    @property
    def standard(self) -> RDOQ:
        """The same method at the one size where folds and corrections are measured: others then find them known."""
        if self.target_file_bits is not None:
            return replace(self, target_file_bits=BITS)
        return replace(self, target_bits=None, target_kl=None)

    @property
    def asked(self) -> str:
        """What it says of how large the result may be, as a user types it."""
        given = {name: getattr(self, name) for name in SIZES if getattr(self, name) is not None}
        return next((f"{name}={value}" for name, value in given.items()), f"target_bits={BITS}")

    @property
    def quant_type(self) -> str:
        """The format of `grid`, or W8A8S; with float activations W8A16."""
        if self.activations == "float":
            return "W8A16"
        return "W8A8S" if self.grid is None else self.grid.quant_type

    def clips_first(self, name: str) -> bool:
        """Whether the input range of a linear leaves out the first token of each prompt."""
        return any(fnmatchcase(name, pattern) for pattern in self.clip_first)

    @property
    def statistics(self) -> str:
        """Fisher statistics; for a loss to aim at, prompts to measure it on are held out of them."""
        more = "" if self.target_kl is None else ", prompts held out"
        if self.importance == MOMENTS:
            return f"second moments{more}"
        return f"fisher statistics{'' if self.target_file_bits is None else ' of embeddings too'}{more}"

    @property
    def levels(self) -> int:
        """The levels of `grid`, but never -128."""
        return INT8_LEVELS if self.grid is None else self.grid.levels

    def expected_bits(self, shape: tuple[int, int]) -> float:
        """The target, less a row's step; rows too short for that get the half."""
        if self.grid is not None:
            return self.grid.expected_bits(shape)
        target = self.bits or self.target_file_bits or BITS
        return max(target - SCALE_BITS / shape[1], target / 2)

    def quantize_weight(self, weight: Tensor) -> QuantizedWeight:
        """Round on one step for all rows, from the entropy of gaussian weights, as nothing is known of the inputs."""
        if self.grid is not None:
            return self.grid.quantize_weight(weight)
        weight = check_finite(weight)
        spread = float(weight.std(correction=0)) or 1.0
        largest = float(weight.abs().max()) or 1.0
        step = spread * math.sqrt(2 * math.pi * math.e) * 2.0 ** -self.expected_bits((weight.shape[0], weight.shape[1]))
        step = min(step, largest / NORMAL_LEVELS)
        steps = guarded(torch.full((weight.shape[0], 1), step), weight)
        return QuantizedWeight(round_to_grid(weight, steps), steps)
