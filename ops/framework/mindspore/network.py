"""A MindSpore network as calibration sees it: its linears by name, and what they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import mindspore as ms
import torch
from mindspore import Parameter, Tensor, mint, nn, ops

from slimrun.ops.calibration.base import OTHER_INPUTS, WEIGHT_READ, Sample, Watcher
from slimrun.ops.calibration.smoothing import foldable_by_runs
from slimrun.ops.calibration.wiring import Observations
from slimrun.ops.format.linear import QuantizedLinear
from slimrun.ops.memory import give_back
from slimrun.ops.model.linears import ONE_OUTPUT
from slimrun.ops.weights.mindspore import from_torch, to_torch

from .int8_cell import QuantizedCell, quantized_cell


class MindSporeNetwork:
    """A network as `slimrun.ops.calibration.base.Network`; `forward` runs one sample, by default the network itself."""

    def __init__(self, network: nn.Cell, forward: Callable[..., Any] | None = None) -> None:
        self.network = network
        self.forward = forward or network

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name and shape [n, k] of every linear, in the order of the cells."""
        return linear_names(self.network)

    def kept(self) -> dict[str, str]:
        """Gates, which stay float."""
        return gates(self.network)

    def quantized(self) -> list[str]:
        """Names of the quantized linears, in the order of the cells."""
        return [name for name, cell in self.network.cells_and_names() if isinstance(cell, QuantizedCell)]

    def used_otherwise(self, names: Sequence[str], run: Callable[[], Any]) -> dict[str, str]:
        """Linear -> why it cannot be replaced: what the network does with it beside calling it, while `run` runs."""
        check_mode()
        found: dict[str, str] = {}
        asked = {name: Asked(cell_of(self.network, name), partial(found.setdefault, name)) for name in names}
        for name, cell in asked.items():
            put(self.network, name, cell)
        try:
            run()
        finally:
            for name, cell in asked.items():
                put(self.network, name, cell.cell)
        return found

    @contextmanager
    def linear(self, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Weight and bias."""
        cell = cell_of(self.network, name)
        bias = bias_of(cell)
        yield to_torch(cell.weight), None if bias is None else to_torch(bias).clone()

    def replace(self, name: str, linear: QuantizedLinear) -> Callable[[], None]:
        """Put a quantized linear in the place of the one that is there; calling what is returned puts it back."""
        old = cell_of(self.network, name)
        activation = old.activation if isinstance(old, QuantizedCell) else activation_of(old)
        put(self.network, name, quantized_cell(name, linear, activation))
        return lambda: put(self.network, name, old)

    def leave(self, count: int) -> None:
        """Return what the float linears took to the system."""
        give_back()

    @contextmanager
    def watching(self, watchers: Mapping[str, Watcher]) -> Iterator[None]:
        """Meanwhile each linear's input goes to its watcher before the linear computes."""
        check_mode()
        watched = {name: Watched(cell_of(self.network, name), watcher) for name, watcher in watchers.items()}
        for name, cell in watched.items():
            put(self.network, name, cell)
        try:
            yield
        finally:
            for name, cell in watched.items():
                put(self.network, name, cell.cell)
                if isinstance(cell.cell, QuantizedCell):
                    cell.cell.update()
        if watched and not any(cell.calls for cell in watched.values()):
            raise ValueError(
                "no linear was called during calibration: is the network compiled (ms.jit)? calibrate it in PyNative"
            )

    @contextmanager
    def observing(self, seen: Observations) -> Iterator[None]:
        """Meanwhile norms and linears report what they give and read."""
        check_mode()
        cells: list[tuple[str, Any]] = [
            *((name, Reading(cell_of(self.network, name), partial(seen.read, name))) for name in self.linears()),
            *((name, Giving(cell, partial(seen.gave, name))) for name, cell in norms(self.network).items()),
        ]
        for name, cell in cells:
            put(self.network, name, cell)
        try:
            yield
        finally:
            for name, cell in cells:
                put(self.network, name, cell.cell)

    def affine(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of a norm or a linear."""
        cell = cell_of(self.network, name)
        bias = bias_of(cell)
        weight = cell.cell.weight if isinstance(cell, Biased) else cell.weight
        return to_torch(weight), None if bias is None else to_torch(bias)

    def foldable(self, norms: Mapping[str, Sequence[str]], run: Callable[[], Any]) -> dict[str, float]:
        """Norms that can give something else, by what the whole network then gives; with each its offset."""

        def takes_shift(name: str) -> bool:
            cell = cell_of(self.network, name)
            return activation_of(cell) is None or bias_of(cell) is not None

        return foldable_by_runs(
            self, {name: given for name, given in norms.items() if all(map(takes_shift, given))}, run
        )

    def set_affine(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Give a norm or a linear this weight and this bias; None: what it has stays."""
        cell = cell_of(self.network, name)
        parameter = cell.cell.weight if isinstance(cell, Biased) else cell.weight
        parameter.set_data(from_torch(weight.to(to_torch(parameter).dtype)))
        if bias is not None:
            add_bias(self.network, name, bias.to(to_torch(parameter).dtype))

    def first_tensor(self, output: Any) -> torch.Tensor:
        """The first tensor of what the network gave: a Tensor or a tuple."""
        return to_torch(output if isinstance(output, Tensor) else output[0])

    def run(self, sample: Sample) -> Any:
        """The network on one sample."""
        return self.forward(**sample) if isinstance(sample, Mapping) else self.forward(*sample)

    def tell_parts(self, sample: Sample) -> int:
        """One: what a network calls its blocks is not known."""
        return 1

    def run_part(self, part: int, sample: Sample, state: Any) -> Any:
        """The whole network on one sample."""
        return self.run(sample)


class Watched(nn.Cell):
    """A linear whose input is shown to a watcher; a quantized one computes on the host, where its grid just moved."""

    def __init__(self, cell: nn.Cell, watcher: Watcher) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.watcher = watcher
        self.calls = 0

    def construct(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        seen = to_torch(x)
        self.watcher(seen)
        self.calls += 1
        if not isinstance(self.cell, QuantizedCell):
            return self.cell(x)
        with torch.no_grad():
            return self.cell.finish(from_torch(self.cell.linear(seen)))


class Asked(nn.Cell):
    """A linear that says when the network takes its weight to multiply with it itself."""

    def __init__(self, cell: nn.Cell, say: Callable[[str], object]) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.say = say

    @property
    def weight(self) -> Parameter:
        """[n, k]."""
        self.say(WEIGHT_READ)
        return self.cell.weight

    @property
    def bias(self) -> Parameter | None:
        """[n], None for none."""
        return bias_of(self.cell)

    def construct(self, *given: Any, **named: Any) -> Tensor:
        """x [..., k] -> [..., n]."""
        if named or len(given) != 1:
            self.say(OTHER_INPUTS)
        return self.cell(*given, **named)


class Reading(nn.Cell):
    """A linear that shows what it is given."""

    def __init__(self, cell: nn.Cell, show: Callable[[Tensor], None]) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.show = show

    def construct(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        self.show(x)
        return self.cell(x)


class Giving(nn.Cell):
    """A norm that shows what it gives."""

    def __init__(self, cell: nn.Cell, show: Callable[[Tensor, torch.Tensor], None]) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.show = show

    def construct(self, x: Tensor) -> Tensor:
        """x [..., c] -> [..., c]."""
        out = self.cell(x)
        self.show(out, to_torch(out))
        return out


class Biased(nn.Cell):
    """A norm and a bias [c] behind it, which its own class does not know."""

    def __init__(self, cell: nn.Cell, bias: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.bias = bias

    def construct(self, x: Tensor) -> Tensor:
        """x [..., c] -> [..., c]."""
        return self.cell(x) + self.bias


def norms(network: nn.Cell) -> dict[str, Any]:
    """Every norm, by class name, with a weight [c]."""
    return {
        name: cell
        for name, cell in network.cells_and_names()
        if "Norm" in type(cell).__name__ and len(getattr(getattr(cell, "weight", None), "shape", ())) == 1
    }


def bias_of(cell: Any) -> Parameter | None:
    """The bias of a linear or a norm, if it has one."""
    return getattr(cell, "bias", None) if getattr(cell, "has_bias", True) else None


def add_bias(network: nn.Cell, name: str, bias: torch.Tensor) -> None:
    """Give the norm or linear of this name a bias [n], or its bias this value."""
    cell = cell_of(network, name)
    had = bias_of(cell)
    if had is not None:
        had.set_data(from_torch(bias))
        return
    added = Parameter(from_torch(bias), name=f"{name}.bias", requires_grad=False)
    if is_linear(cell):
        cell.bias, cell.has_bias = added, True
        if not hasattr(cell, "bias_add"):
            cell.bias_add = ops.add
    else:
        put(network, name, Biased(cell, added))


def linear_names(network: nn.Cell) -> dict[str, tuple[int, int]]:
    """Name and shape [n, k] of every quantizable cell, in the order of the cells."""
    return {name: tuple(cell.weight.shape) for name, cell in network.cells_and_names() if is_linear(cell)}


def gates(network: nn.Cell) -> dict[str, str]:
    """Linears that stay float whatever the method, and why."""
    return {name: ONE_OUTPUT for name, (rows, _) in linear_names(network).items() if rows == 1}


def is_linear(cell: Any) -> bool:
    """`nn.Dense`, `mint.nn.Linear`, or the Linear of mindformers, known by name and structure without importing it.

    A weight that lies transposed ([k, n]) or holds several experts is none.
    """
    if not isinstance(cell, nn.Dense | mint.nn.Linear) and type(cell).__name__ != "Linear":
        return False
    weight = getattr(cell, "weight", None)
    return isinstance(weight, ms.Parameter) and len(weight.shape) == 2 and getattr(cell, "transpose_b", True)


def activation_of(cell: Any) -> Any:
    """What a linear applies to its output: nn.Dense and mindformers' Linear say so alike."""
    return cell.activation if getattr(cell, "activation_flag", False) else None


def cell_of(network: nn.Cell, name: str) -> Any:
    """The cell of this name."""
    found: Any = network
    for part in name.split("."):
        found = found[int(part)] if isinstance(found, nn.CellList | nn.SequentialCell) else getattr(found, part)
    return found


def put(network: nn.Cell, name: str, cell: nn.Cell) -> None:
    """Put a cell in the place that the name says, without the new names that MindSpore gives its parameters there."""
    named = [(parameter, parameter.name) for parameter in cell.get_parameters()]
    parent, _, child = name.rpartition(".")
    owner = cell_of(network, parent) if parent else network
    if isinstance(owner, nn.CellList | nn.SequentialCell):
        owner[int(child)] = cell
    else:
        setattr(owner, child, cell)
    for parameter, own in named:
        parameter.name = own


def check_mode() -> None:
    """ValueError in graph mode, where what calibration puts into the network would be compiled away."""
    if ms.get_context("mode") == ms.GRAPH_MODE:
        raise ValueError(
            "calibration in graph mode would see nothing: call mindspore.set_context(mode=mindspore.PYNATIVE_MODE) "
            "before; evaluation may be compiled"
        )
