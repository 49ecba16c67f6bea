"""Rounding with error feedback: what a weight error costs, the steps that follow from it, and integers on them.

`rdoq.py` says what is minimized, and why.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrun.ops import _native
from slimrun.ops.format.arithmetic import INT8_LEVELS

from .base import round_to_grid

BLOCK = 128  # columns that are rounded before the rest hears of their errors
GUARD = 126.5  # steps that the largest weight of a row may take
PLAIN_PRICE = math.log(2) / 6  # -dD/dR of a uniform quantizer with entropy coding, in squared steps a bit
WELL_DAMPED = 0.01  # from this damping on single precision factors a moment
SHRINKAGE = 0.1  # of correlations between inputs: what few tokens say of them is partly chance
# exponents of the importance in the choice of steps; 1 trusts a heavy-tailed estimate too far
TENSOR_BALANCE = 0.5
ROW_BALANCE = 0.7


@dataclass(frozen=True)
class Importance:
    """What a weight error costs: sum_r rows_r E_r H E_r^T with H = (factor^T factor)^-1, columns in `order`."""

    factor: Tensor  # float32 [k, k], upper triangular: the Cholesky factor of the inverse
    columns: Tensor  # float32 [k], in `order`: what a squared error costs that the later columns answer in the best way
    order: Tensor  # int64 [k], most important column first
    rows: Tensor  # float32 [n]
    correction: float = 1.0  # what errors were measured to cost, over what was estimated, against other linears
    given: Tensor | None = None  # float32 [n]: a slope to take instead of the estimated one

    @property
    def slope(self) -> Tensor:
        """float32 [n]: the cost of a squared step by row, averaged over the columns, tempered, corrected."""
        if self.given is not None:
            return self.given
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


def spread_slope(weight: Tensor, *, by_row: bool) -> Tensor:
    """float32 [n]: the slope of weights [n, k] that takes about as many bits of each row, or of each matrix as a whole.

    Its step is then a share of the row's, or of the matrix's, spread.
    """
    weight = weight.to(torch.float32)
    variance = weight.var(dim=1, correction=0) if by_row else weight.var(correction=0).expand(weight.shape[0])
    return variance.clamp_min(1e-30).reciprocal()


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
