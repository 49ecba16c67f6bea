"""What the Calibrator does to a MindSpore network: find its linears, replace them, watch what they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mindspore as ms
import torch
from mindspore import Tensor, mint, nn

from ops.framework.calibrator import Sample, Watcher
from ops.framework.int8_linear import QuantizedLinear
from ops.quant.base import Quantizer

from .int8_cell import QuantizedCell, quantized_cell
from .tensors import from_torch, to_torch


class MindSporeNetwork:
    """A network as `ops.framework.calibrator.Network`; `forward` runs one sample, by default the network itself."""

    def __init__(self, network: nn.Cell, forward: Callable[..., Any] | None = None) -> None:
        self.network = network
        self.forward = forward or network

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name and shape [n, k] of every linear, in the order of the cells."""
        return linear_names(self.network)

    @contextmanager
    def linear(self, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Weight and bias."""
        cell = cell_of(self.network, name)
        bias = getattr(cell, "bias", None) if getattr(cell, "has_bias", True) else None
        yield to_torch(cell.weight), None if bias is None else to_torch(bias).clone()

    def replace(self, name: str, linear: QuantizedLinear) -> None:
        """Put a quantized linear in the place of the float one, with its activation."""
        old = cell_of(self.network, name)
        put(self.network, name, quantized_cell(name, linear, activation_of(old)))

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

    def smooth(self, quantizer: Quantizer, selected: set[str], runs: Sequence[Callable[[], Any]]) -> list[str]:
        """Refused."""
        raise ValueError("do_smooth=true is for framework=pytorch; allowed: false")

    def run(self, sample: Sample) -> Any:
        """The network on one sample."""
        return self.forward(**sample) if isinstance(sample, Mapping) else self.forward(*sample)


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


def linear_names(network: nn.Cell) -> dict[str, tuple[int, int]]:
    """Name and shape [n, k] of every quantizable cell, in the order of the cells."""
    return {name: tuple(cell.weight.shape) for name, cell in network.cells_and_names() if is_linear(cell)}


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
