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
import os
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from slimrun.ops import _native
from slimrun.ops.format.arithmetic import INT8_LEVELS, QuantizedWeight

from .base import NORMAL_LEVELS, Quantizer, StaticQuantizer, check_finite, round_to_grid

ACTIVATIONS = ("int8", "float")
DYNAMIC_INPUTS, FLOAT_INPUTS = "dynamic", "float"  # int8 with a step a token; as they are
INPUTS = [[FLOAT_INPUTS], [DYNAMIC_INPUTS], [DYNAMIC_INPUTS, FLOAT_INPUTS]]
BITS = 3.5  # coded, a weight, where nothing is asked for
BLOCK = 128  # columns that are rounded before the rest hears of their errors
GUARD = 126.5  # steps that the largest weight of a row may take
PLAIN_PRICE = math.log(2) / 6  # -dD/dR of a uniform quantizer with entropy coding, in squared steps a bit
GAUSSIAN_NOISE = math.pi * math.e / 6  # squared error of entropy-coded gaussian weights, times variance 4^-bits
WELL_DAMPED = 0.01  # from this damping on single precision factors a moment
SCALE_BITS = 32  # of a row's step
SIZES = ("target_bits", "target_kl", "target_file_bits", "grid")  # what says how large the result may be, one of them
SHRINKAGE = 0.1  # of correlations between inputs: what few tokens say of them is partly chance
# exponents of the importance in the choice of steps; 1 trusts a heavy-tailed estimate too far
TENSOR_BALANCE = 0.5
ROW_BALANCE = 0.7


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
    activations: str = "int8"
    observer: str = "minmax"
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
        if self.activations not in ACTIVATIONS:
            raise ValueError(f"activations={self.activations} is not known; allowed: {', '.join(ACTIVATIONS)}")
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
    def bits(self) -> float | None:
        """Coded bits a weight to aim at; 3.5 when nothing else is asked for."""
        return BITS if all(getattr(self, name) is None for name in SIZES) else self.target_bits

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

    @property
    def statistics(self) -> str:
        """Fisher statistics; for a loss to aim at, prompts to measure it on are held out of them."""
        more = "" if self.target_kl is None else ", prompts held out"
        return f"fisher statistics{'' if self.target_file_bits is None else ' of embeddings too'}{more}"

    @property
    def levels(self) -> int:
        """Those of `grid`, but never -128."""
        return INT8_LEVELS if self.grid is None else self.grid.levels

    def expected_bits(self, shape: tuple[int, int]) -> float:
        """The target, less a row's step; rows too short for that get the half."""
        if self.grid is not None:
            return self.grid.expected_bits(shape)
        target = self.bits or self.target_file_bits or BITS
        return max(target - SCALE_BITS / shape[1], target / 2)

    def quantize_weight(self, weight: Tensor) -> QuantizedWeight:
        """Without anything known of the inputs: one step for all rows, from the entropy of gaussian weights."""
        if self.grid is not None:
            return self.grid.quantize_weight(weight)
        weight = check_finite(weight)
        spread = float(weight.std(correction=0)) or 1.0
        largest = float(weight.abs().max()) or 1.0
        step = spread * math.sqrt(2 * math.pi * math.e) * 2.0 ** -self.expected_bits((weight.shape[0], weight.shape[1]))
        step = min(step, largest / NORMAL_LEVELS)
        steps = guarded(torch.full((weight.shape[0], 1), step), weight)
        return QuantizedWeight(round_to_grid(weight, steps), steps)


@dataclass(frozen=True)
class Importance:
    """What a weight error costs: sum_r rows_r E_r H E_r^T with H = (factor^T factor)^-1, columns in `order`."""

    factor: Tensor  # float32 [k, k], upper triangular: the Cholesky factor of the inverse
    columns: Tensor  # float32 [k], in `order`: what a squared error costs that the later columns answer in the best way
    order: Tensor  # int64 [k], most important column first
    rows: Tensor  # float32 [n]
    correction: float = 1.0  # what errors were measured to cost, over what was estimated, against other linears

    @property
    def slope(self) -> Tensor:
        """float32 [n]: the cost of a squared step by row, averaged over the columns, tempered, corrected."""
        mean = self.rows.mean().clamp_min(1e-30)
        of_tensor = (mean * self.columns.mean()).pow(TENSOR_BALANCE) * self.correction
        return (self.rows / mean).pow(ROW_BALANCE) * of_tensor


def importance(hessian: Tensor, rows: Tensor, damping: float) -> Importance:
    """Factor the second moment [k, k], damped by a share of its mean diagonal; rows [n].

    Each diagonal entry also grows by SHRINKAGE, which brings the correlations nearer to zero. An input that is always
    zero counts as damped. ValueError when the moment holds NaN or infinity.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("the second moment of the inputs holds NaN or infinity")
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    backwards = order.flip(0)
    dtype = torch.float32 if damping >= WELL_DAMPED else torch.float64
    moment = hessian[backwards][:, backwards].to(dtype)
    mean = float(diagonal.mean()) or 1.0
    del hessian, diagonal  # a few matrices as large as the largest of a model are all that memory has room for
    share = damping
    while True:
        damped = moment.clone()
        damped.diagonal().mul_(1 + SHRINKAGE).add_(share * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if not int(failed):
            # H = R R^T with R upper, the flipped factor, so R^-1 is the Cholesky factor of the inverse
            upper = lower.flip(0, 1)
            del lower, moment
            identity = torch.eye(len(order), dtype=dtype, device=upper.device)
            factor = torch.linalg.solve_triangular(upper, identity, upper=True).to(torch.float32)
            columns = factor.diagonal().square().reciprocal()
            return Importance(factor, columns, order, rows.to(torch.float32).clamp_min(0))
        share *= 10


def row_steps(slope: Tensor, weight: Tensor, level: float) -> Tensor:
    """Steps [n, 1] at which every row loses the same for a bit: slope * step^2 = level^2, guarded.

    A row that costs nothing takes the largest step of the others.
    """
    steps = level / slope.clamp_min(1e-30).sqrt()
    known = slope > slope.max() * 1e-8
    steps = torch.where(known, steps, steps[known].max() if bool(known.any()) else torch.ones_like(steps))
    return guarded(steps.reshape(-1, 1), weight)


def guarded(steps: Tensor, weight: Tensor) -> Tensor:
    """Steps [n, 1] large enough for the largest weight of each row: beyond 127 the error would have no bound."""
    return torch.maximum(steps, weight.abs().amax(dim=1, keepdim=True) / GUARD).clamp_min(1e-30)


def code_lengths(values: Tensor) -> Tensor:
    """Bits [256] of the levels -128..127 by their counts in int8 values, each counted once more than it occurs."""
    counts = torch.bincount(values.reshape(-1).to(torch.int64) + 128, minlength=256).to(torch.float64) + 1
    return (-torch.log2(counts / counts.sum())).to(torch.float32)


def feedback(
    weight: Tensor,
    steps: Tensor,
    known: Importance,
    bits: Tensor,
    price: float,
    level: float = math.inf,
    limit: int = INT8_LEVELS,
) -> Tensor:
    """int8 values [n, k] in [-limit, limit] of a weight [n, k] on steps [n, 1], rounded column by column with feedback.

    `bits` [256] are the code lengths; `price` 1 makes a bit cost what it costs at the slope that `level` stands for in
    `row_steps` (infinity: the slope that a row's step itself has), 0 takes the nearest level. Rows are independent; a
    block of columns is rounded at once and its errors reach the rest as one product. Feedback usually but not always
    costs less than plain rounding: a row where it does not is rounded plainly.
    """
    plain = round_to_grid(weight, steps, -limit, limit)
    missed = (weight - plain * steps)[:, known.order].to(torch.float32)
    plain_cost = torch.linalg.solve_triangular(known.factor, missed, upper=True, left=False).square().sum(dim=1)
    cost = torch.zeros_like(plain_cost)
    rest = weight[:, known.order].to(torch.float32)
    values = torch.empty(rest.shape, dtype=torch.int8, device=rest.device)
    columns = known.columns
    # in squared steps: where the guard has made a step larger than its slope's, a bit buys less
    row_price = (level**2 / (known.slope * steps.reshape(-1).square()).clamp_min(1e-30)).clamp_max(1.0)
    column_price = (price * PLAIN_PRICE * columns.mean() / columns).to(torch.float32)
    for start in range(0, rest.shape[1], BLOCK):
        end = min(start + BLOCK, rest.shape[1])
        own = known.factor[start:end, start:end].contiguous()
        block = rest[:, start:end].contiguous()
        q, errors = _feedback_block(block, own, steps.reshape(-1), column_price[start:end], row_price, bits, limit)
        values[:, start:end] = q
        cost += errors.square().sum(dim=1)
        if end < rest.shape[1]:
            rest[:, end:].addmm_(errors, known.factor[start:end, end:], alpha=-1)
    original = torch.empty_like(values)
    original[:, known.order] = values
    a_bit = price * PLAIN_PRICE * columns.mean() * row_price * steps.reshape(-1).square()
    plain_cost += a_bit * bits[plain.long() + 128].sum(dim=1)
    cost += a_bit * bits[original.long() + 128].sum(dim=1)
    return torch.where((cost <= plain_cost).unsqueeze(1), original, plain)


def weighted_error(weight: Tensor, values: Tensor, steps: Tensor, hessian: Tensor, rows: Tensor) -> float:
    """sum_r rows_r E_r H E_r^T of E = weight - values * steps."""
    error = weight.to(torch.float32) - values * steps
    return float(((error @ hessian) * error).sum(dim=1) @ rows)


def _feedback_block(
    block: Tensor, factor: Tensor, steps: Tensor, price: Tensor, row_price: Tensor, bits: Tensor, limit: int
) -> tuple[Tensor, Tensor]:
    """(int8 values, errors) of a block [n, b] of columns: ops/csrc/feedback.hpp, on the CPU wherever the block is."""
    given = (tensor.cpu().contiguous().numpy() for tensor in (block, factor, steps, price, row_price, bits))
    rest, own, step, column, row, length = given
    values, errors = torch.empty(block.shape, dtype=torch.int8), torch.empty(block.shape)
    threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    _native.feedback_into(rest, own, step, column, row, length, limit, values.numpy(), errors.numpy(), threads)
    return values.to(block.device), errors.to(block.device)
