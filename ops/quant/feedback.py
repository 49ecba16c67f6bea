"""Rounding with error feedback: what a weight error costs, the steps that follow from it, and integers on them.

`rdoq.py` says what is minimized, and why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrun.ops import _native
from slimrun.ops.format.arithmetic import INT8_LEVELS, numpy
from slimrun.ops.format.products import for_products
from slimrun.ops.format.weights import extremes

WIDE = 512  # columns that are rounded before all that follow hear of their errors: long products are fast
STRIP = 1024  # rows or columns of a triangular matrix that are multiplied at once
ROWS = 2048  # that are rounded at once: what lies beside the weight is of so many
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
    order, moment = _most_important_last(hessian, damping)
    del hessian  # a few matrices as large as the largest of a model are all that memory has room for
    upper = _root(moment, damping)
    del moment
    factor = _inverse(upper).to(torch.float32)
    columns = factor.diagonal().square().reciprocal()
    return Importance(factor, columns, order, rows.to(torch.float32).clamp_min(0))


def column_costs(hessian: Tensor, damping: float) -> Tensor:
    """`Importance.columns` [k] of the second moment, in its own order: without the inverse they take a third."""
    order, moment = _most_important_last(hessian, damping)
    del hessian
    costs = torch.empty(len(order), device=order.device)
    costs[order] = _root(moment, damping).diagonal().reciprocal().to(torch.float32).square().reciprocal()
    return costs


def _most_important_last(hessian: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(order of columns, most important first; the moment the other way round, in the dtype to factor it in)."""
    if not bool(torch.stack(torch.aminmax(hessian)).isfinite().all()):  # one pass, and no mask as large
        raise ValueError("the second moment of the inputs holds NaN or infinity")
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    backwards = order.flip(0)
    moment = hessian[backwards.unsqueeze(1), backwards]
    return order, moment.to(torch.float32 if damping >= WELL_DAMPED else torch.float64)


def _root(moment: Tensor, damping: float) -> Tensor:
    """Upper R with R R^T the damped moment, flipped; its inverse is the Cholesky factor of the inverse.

    The diagonal of the moment is changed.
    """
    diagonal, share = moment.diagonal().clone(), damping
    mean = float(diagonal.mean()) or 1.0
    while True:
        moment.diagonal().copy_(diagonal * (1 + SHRINKAGE)).add_(share * mean)
        lower, failed = torch.linalg.cholesky_ex(moment)
        if not int(failed):
            upper: Tensor = lower.flip(0, 1)
            return upper
        share *= 10


def spread_slope(weight: Tensor, rows: Tensor | None = None) -> Tensor:
    """float32 [n]: the slope of weights [n, k] that takes about as many bits of each row, or of each matrix as a whole.

    Its step is then a share of the row's spread; given how often an error in each of the `rows` [n] counts, of the
    matrix's, whose rows are weighted by that.
    """
    weight = weight.to(torch.float32)
    if rows is None:
        return weight.var(dim=1, correction=0).clamp_min(1e-30).reciprocal()
    variance = (weight * rows.sqrt().unsqueeze(1)).var(correction=0)
    return rows / variance.clamp_min(1e-30)


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
    _, largest = extremes(weight)
    return torch.maximum(steps, largest / GUARD).clamp_min(1e-30)


def code_lengths(values: Tensor) -> Tensor:
    """Bits [256] of the levels -128..127 by their counts in int8 values, each counted once more than it occurs."""
    unsigned = values.contiguous().view(torch.uint8).reshape(-1)  # -128 is 128, and -1 255
    counts = torch.bincount(unsigned, minlength=256).roll(128).to(torch.float64) + 1
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
    columns, a_bit = known.columns, price * PLAIN_PRICE * known.columns.mean()
    # in squared steps: where the guard has made a step larger than its slope's, a bit buys less
    row_price = (level**2 / (known.slope * steps.reshape(-1).square()).clamp_min(1e-30)).clamp_max(1.0)
    column_price = (a_bit / columns).to(torch.float32)
    factor = for_products(known.factor) if len(columns) > WIDE else known.factor
    order, steps = known.order.to(torch.int32), steps.reshape(-1)
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        exact, plain, missed = _in_order(weight[rows], order, steps[rows], limit)
        row = _RowPrices(steps[rows], row_price[rows], column_price, bits, limit)
        fed, cost, plain_cost = _fed_rows(exact, missed, known.factor, factor, row)
        step_price = a_bit * row_price[rows] * steps[rows].square()
        plain_cost += step_price * row_bits(plain, bits)
        cost += step_price * row_bits(fed, bits)
        values[rows] = _out_of_order(fed, plain, cost <= plain_cost, order)
    return values


def weighted_error(weight: Tensor, values: Tensor, steps: Tensor, hessian: Tensor, rows: Tensor) -> float:
    """sum_r rows_r E_r H E_r^T of E = weight - values * steps."""
    error = weight.to(torch.float32) - values * steps
    return float(((error @ hessian) * error).sum(dim=1) @ rows)


@dataclass(frozen=True)
class _RowPrices:
    """What rounding some rows asks for beside their weights."""

    steps: Tensor  # float32 [n]
    row_price: Tensor  # float32 [n]
    column_price: Tensor  # float32 [k], in order
    bits: Tensor  # float32 [256]
    limit: int


def _in_order(weight: Tensor, order: Tensor, steps: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """(float32, nearest int8 on steps [n], float32 that these miss) of a weight [n, k], its columns in this order."""
    given = (weight.to(torch.float32), order, steps)
    rows, columns, step = (numpy(tensor.cpu()) for tensor in given)
    exact, plain, missed = (
        torch.empty(weight.shape, dtype=kind) for kind in (torch.float32, torch.int8, torch.float32)
    )
    out = exact.numpy(), plain.numpy(), missed.numpy(), torch.get_num_threads()
    _native.in_order_into(rows, columns, step, limit, *out)
    return exact.to(weight.device), plain.to(weight.device), missed.to(weight.device)


def _out_of_order(fed: Tensor, plain: Tensor, takes: Tensor, order: Tensor) -> Tensor:
    """int8 [n, k] with the columns where they were: rows of `fed` where one `takes` [n] it, else of `plain`."""
    one, other, which, columns = (numpy(tensor.cpu()) for tensor in (fed, plain, takes, order))
    values = torch.empty(fed.shape, dtype=torch.int8)
    _native.out_of_order_into(one, other, which, columns, values.numpy(), torch.get_num_threads())
    return values.to(fed.device)


def _fed_rows(
    rest: Tensor, missed: Tensor, factor: Tensor, fast: Tensor, prices: _RowPrices
) -> tuple[Tensor, Tensor, Tensor]:
    """(int8 values, what their errors cost, what `missed` costs) of rows [n, k], columns in order; `rest` is changed.

    `fast` is the factor in the dtype of long products, which carry errors from WIDE columns to all that follow.
    """
    n, k = rest.shape
    values = torch.empty(rest.shape, dtype=torch.int8, device=rest.device)
    cost, missed_cost = rest.new_zeros(n), rest.new_zeros(n)
    errors = fast.new_empty(2 * n, k)  # those that rounding with feedback makes, then those of `missed`
    for start in range(0, k, WIDE):
        end = min(start + WIDE, k)
        own, wide, left = factor[start:end, start:end], rest[:, start:end], missed[:, start:end]
        if start:
            carried = errors[:, :start] @ fast[:start, start:end]
            wide -= carried[:n]
            left -= carried[n:]
        solved = left @ _inverse(own)
        missed_cost += solved.square().sum(dim=1)
        errors[n:, start:end] = solved
        price = prices.column_price[start:end]
        values[:, start:end], missing = _feedback_block(wide, own, price, prices)
        errors[:n, start:end] = missing
        cost += missing.square().sum(dim=1)
    return values, cost, missed_cost


def _feedback_block(block: Tensor, factor: Tensor, price: Tensor, prices: _RowPrices) -> tuple[Tensor, Tensor]:
    """(int8 values, errors) of a block [n, b] of columns: ops/csrc/feedback.hpp, on the CPU wherever the block is."""
    given = (block, factor, prices.steps, price, prices.row_price, prices.bits)
    rest, own, step, column, row, length = (numpy(tensor.cpu()) for tensor in given)
    values, errors = torch.empty(block.shape, dtype=torch.int8), torch.empty(block.shape)
    out = values.numpy(), errors.numpy(), torch.get_num_threads()
    _native.feedback_into(rest, own, step, column, row, length, prices.limit, *out)
    return values.to(block.device), errors.to(block.device)


def row_bits(values: Tensor, bits: Tensor) -> Tensor:
    """What the codes of int8 values [n, k] take by row, float32 [n]."""
    sums = torch.empty(len(values))
    _native.code_bits_into(numpy(values.cpu()), numpy(bits.cpu()), sums.numpy(), torch.get_num_threads())
    return sums.to(values.device)


def _inverse(upper: Tensor) -> Tensor:
    """The inverse of an upper triangular matrix [k, k], made of those of its halves: products are fast."""
    k, half = len(upper), len(upper) // 2
    if k <= WIDE:
        identity = torch.eye(k, dtype=upper.dtype, device=upper.device)
        solved: Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
        return solved
    inverse = torch.zeros_like(upper)
    inverse[:half, :half], inverse[half:, half:] = _inverse(upper[:half, :half]), _inverse(upper[half:, half:])
    first, last, corner = inverse[:half, :half], inverse[half:, half:], torch.empty_like(upper[:half, half:])
    for start in range(0, half, STRIP):  # of what is zero below the diagonal nothing is multiplied
        rows = slice(start, min(start + STRIP, half))
        torch.mm(first[rows, start:], upper[start:half, half:], out=corner[rows])
    for start in range(0, k - half, STRIP):
        end = min(start + STRIP, k - half)
        torch.mm(corner[:, :end], last[:end, start:end], out=inverse[:half, half + start : half + end]).neg_()
    return inverse
