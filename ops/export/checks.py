"""What every export is held against before it takes its place: read back, linear by linear, beside the bundle.

No bound on logits is among them: with static int8 inputs a model answers a change of 1e-6 with other tokens, so two
engines never agree end to end. What can agree are integers, steps, grids, and one linear on equal input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from slimrun.ops.format.arithmetic import dynamic_linear
from slimrun.ops.format.linear import FLOAT, DynamicInt8Linear, float_product
from slimrun.ops.memory import release

from .ahead import ahead
from .plan import groups, listed
from .source import Linear, Source

STEP_CHANGE = 0.01  # a step that its dtype there changes by more is no rounding any more
PRODUCT_CHANGE = 1e-6  # of a linear's outputs, median: float32 sums in another order
PIECE = 1 << 18  # bytes that are compared at a time
TOKENS, TRIED = 8, 512  # of the input, and rows at least, that a linear is tried on where it has as many
REACH = 40  # its standard deviation, in steps of the grid


@dataclass(frozen=True)
class Check:
    """What was looked at, and the outcome."""

    what: str
    outcome: str


@dataclass(frozen=True)
class Held:
    """A linear [n, k] as a target's files hold it."""

    values: Tensor  # int8 [n, k]
    step: Tensor | None  # float32 [n]; None where only deq_scale is stored
    bias: Tensor | None  # float [n]
    grid: tuple[float, int] | None = None  # scale and offset of the input
    per_token: bool = False  # the input has a scale of each token
    deq_scale: Tensor | None = None  # float32 [n]
    quant_bias: Tensor | None = None  # int32 [n]

    def steps(self) -> Tensor:
        """[n], what the outputs of the rows are multiplied with beside the input's scale."""
        if self.step is not None:
            return self.step
        if self.grid is None or self.deq_scale is None:
            raise ValueError("holds neither a step nor a deq_scale with its grid")
        return self.deq_scale.double() / self.grid[0]

    def rows(self, rows: slice) -> Held:
        """Some of its rows."""
        optional = (self.step, self.bias, self.deq_scale, self.quant_bias)
        step, bias, deq_scale, quant_bias = (part if part is None else part[rows].contiguous() for part in optional)
        values = self.values[rows].contiguous()
        return replace(self, values=values, step=step, bias=bias, deq_scale=deq_scale, quant_bias=quant_bias)

    def product(self, x: Tensor) -> Tensor:
        """float64 [m, n] of x [m, k], from the formulas of the formats alone."""
        if self.grid is not None:
            scale, offset = self.grid
            integers = ((x / scale).round() + offset).clamp(-128, 127).to(torch.float64)
            if self.deq_scale is not None and self.quant_bias is not None:
                return (self._sums(integers) + self.quant_bias) * self.deq_scale
            out = self._sums(integers - offset) * scale
        elif self.per_token:
            scales = x.abs().amax(dim=1, keepdim=True) / 127
            out = self._sums((x / scales).round()) * scales
        else:
            out = self._sums(x)
        out = out * self.steps()
        return out if self.bias is None else out + self.bias

    def _sums(self, x: Tensor) -> Tensor:
        """float64 [m, n] of x [m, k] and the integers."""
        return x.to(torch.float64) @ self.values.to(torch.float64).T


class Files(Protocol):
    """A target's files, read back without the code that wrote them."""

    def keys(self) -> set[str]:
        """Names of the float model's tensors that they hold."""

    def linear(self, name: str, kind: str) -> Held:
        """A linear that has the format `kind` there."""

    def tensor(self, key: str) -> Tensor:
        """Any other tensor."""


@dataclass
class _Counts:
    integers: int = 0
    step_change: float = 0.0
    widest: str = ""
    rows: int = 0
    exact_rows: int = 0
    biases: int = 0
    floats: int = 0
    grids: dict[str, tuple[str, tuple[float, int] | None]] = field(default_factory=dict)
    tried: dict[tuple[str, torch.Size], float] = field(default_factory=dict)  # (format, shape) -> median difference


def check(
    source: Source, plan: Mapping[str, str], files: Files, dtype: torch.dtype, *, fused: bool = True
) -> list[Check]:
    """Everything that was found; ValueError names the first tensor that is not what it has to be.

    `fused` says whether linears that share an input have to be of one type and one grid.
    """
    checks = [_keys(source, files)]
    counts = _Counts()

    def both(name: str) -> tuple[Linear, Held]:
        held = files.linear(name, plan[name])
        return source.linear_again(name, held.values), held

    for linear, held in ahead(both, (name for name, kind in plan.items() if kind != FLOAT)):
        _check_shape(source, f"{linear.name}.weight", held.values)
        _compare(counts, linear, plan[linear.name], held)
    for linear in source.linears(name for name, kind in plan.items() if kind == FLOAT):
        key = f"{linear.name}.weight"
        if not identical(files.tensor(key).to(dtype), linear.weight().to(dtype)):
            raise ValueError(f"{key}: differs from the bundle's")
        _check_shape(source, key, linear.values)
    for key in source.floats:
        tensor = files.tensor(key)
        if not source.is_tensor(key, tensor, dtype):
            raise ValueError(f"{key}: differs from the bundle's")
        _check_shape(source, key, tensor)
        release([tensor])
        counts.floats += 1
    return [*checks, *_told(counts), _groups(groups(source, fused), counts)]


def _keys(source: Source, files: Files) -> Check:
    expected, held = source.expected, files.keys() - set(source.shifts)
    if expected is None:
        said = source.keys()
        missing, more = sorted(said - held), sorted(held - said)
        told = f"{len(held)}, those of the bundle (the model brings its own code, which was not run)"
    else:
        missing, more = sorted(expected.keys() - held), sorted(held - expected.keys())
        if source.tied:  # the output layer is the embeddings, under another name
            shapes = {expected[key] for key in held & expected.keys()}
            missing = [key for key in missing if not (key.startswith("lm_head") and expected[key] in shapes)]
        told = f"{len(held)} of the float model's, none more"
    if missing or more:
        raise ValueError(
            f"keys: the float model has {listed(missing) or 'nothing'} more, and not {listed(more) or '-'}"
        )
    return Check("tensors", told)


def _check_shape(source: Source, key: str, tensor: Tensor) -> None:
    expected = None if source.expected is None else source.expected.get(key)
    if expected is not None and tensor.shape != expected:
        raise ValueError(f"{key} has the shape {tuple(tensor.shape)}, the float model's has {expected}")


def _compare(counts: _Counts, linear: Linear, kind: str, held: Held) -> None:
    name = linear.name
    counts.integers += held.values.numel()
    change = float((held.steps().double() / linear.step.double() - 1).abs().max())
    if not change <= STEP_CHANGE:
        raise ValueError(f"{name}: a step changes by {change:.2%}; the dtype of the target has no number near it")
    if change >= counts.step_change:
        counts.step_change, counts.widest = change, name
    if held.grid is not None and not _same_grid(linear, held.grid):
        raise ValueError(f"{name}: the input grid {held.grid} is not the bundle's {linear.grid}")
    if held.deq_scale is not None and held.quant_bias is not None and held.grid is not None:
        _compare_folded(counts, linear, held, held.deq_scale, held.quant_bias, held.grid)
    counts.grids[name] = (kind, held.grid)
    case = (kind, linear.values.shape)
    if case not in counts.tried:
        counts.tried[case] = _difference(linear, held)
        same_inputs = held.grid is None or linear.grid is None or held.grid[0] == linear.grid.scale
        if same_inputs and not counts.tried[case] <= PRODUCT_CHANGE + 2 * change:
            raise ValueError(
                f"{name}: on equal input the outputs differ by {counts.tried[case]:.2g} (median, relative)"
            )
    release([held.values])


def _same_grid(linear: Linear, grid: tuple[float, int]) -> bool:
    """Whether it is the bundle's, its scale rounded to another dtype."""
    scale, offset = grid
    return (
        linear.grid is not None and offset == linear.grid.offset and abs(scale / linear.grid.scale - 1) <= STEP_CHANGE
    )


def _compare_folded(
    counts: _Counts, linear: Linear, held: Held, deq_scale: Tensor, quant_bias: Tensor, grid: tuple[float, int]
) -> None:
    scale, offset = grid
    rows = len(linear.step)
    assert linear.sums is not None
    counts.rows += rows
    counts.exact_rows += int((linear.step * scale == deq_scale).sum())
    recomputed = -offset * linear.sums.double()
    if linear.bias is not None:
        recomputed += (linear.bias.double() / deq_scale.double()).round()
    far = (recomputed - quant_bias).abs() > 1e-6 * quant_bias.abs().clamp_min(1e6)  # float32 biases have 24 bits
    if bool(far.any()):
        raise ValueError(
            f"{linear.name}: quant_bias of row {int(far.nonzero()[0])} is not bias / deq_scale - offset * sum"
        )
    counts.biases += rows


def _difference(linear: Linear, held: Held) -> float:
    """Median relative difference of the outputs on equal input, ours and by the target's numbers.

    Where the target leaves inputs float or takes a step a token, so do we.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, linear.values.shape[1], generator=generator)
    if linear.grid is not None:
        x *= REACH * linear.grid.scale
    rows = slice(None, None, max(1, len(linear.values) // TRIED))  # of all parts of the weight, at its whole width
    module = linear.rows(rows)
    if held.grid is not None or (held.per_token and isinstance(module, DynamicInt8Linear)):
        ours = module(x).double()
    elif held.per_token:
        bias = None if linear.bias is None else linear.bias[rows].contiguous()
        ours = dynamic_linear(x, module.weight, linear.step[rows].contiguous().reshape(-1, 1), bias).double()
    else:
        ours = float_product(module, x).double()
    theirs = held.rows(rows).product(x)
    return float(((theirs - ours).abs() / ours.abs().clamp_min(1e-30)).median())


def identical(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit for bit: by pieces that a cache holds, which torch.equal does not take."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    first, second = (tensor.contiguous().reshape(-1).view(torch.uint8).numpy() for tensor in (one, other))
    begins = range(0, len(first), PIECE)
    return all(np.array_equal(first[begin : begin + PIECE], second[begin : begin + PIECE]) for begin in begins)


def _told(counts: _Counts) -> list[Check]:
    checks = [Check("integers equal", f"{counts.integers:,} of {counts.integers:,}")]
    if counts.integers:
        where = f" ({counts.widest})" if counts.step_change else ""
        checks.append(Check("largest relative change of a step", f"{counts.step_change:.2g}{where}"))
    if counts.rows:
        checks.append(Check("step * input_scale == deq_scale", f"{counts.exact_rows:,} of {counts.rows:,} rows"))
        checks.append(Check("quant_bias recomputed", f"{counts.biases:,} of {counts.rows:,} rows"))
    checks.append(Check("other tensors equal", f"{counts.floats}"))
    for (kind, shape), difference in counts.tried.items():
        size = "x".join(map(str, shape))
        checks.append(Check(f"{kind} {size} on equal input", f"median relative difference {difference:.2g}"))
    return checks


def _groups(groups: Sequence[Sequence[str]], counts: _Counts) -> Check:
    fused = [group for group in groups if len(group) > 1]
    for group in fused:
        if len({counts.grids.get(name) for name in group}) > 1:
            raise ValueError(f"{', '.join(group)}: are one product there, and differ in type or grid")
    told = f"{len(fused)}, each of one type and one grid" if fused else "none"
    return Check("groups that are one product there", told)
