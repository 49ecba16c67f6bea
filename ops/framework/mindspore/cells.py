"""The cells of a network: which are linears, norms and blocks, and how one takes the place of another."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import torch
from mindspore import Parameter, Tensor, mint, nn, ops

from slimrun.ops.model.linears import ONE_OUTPUT
from slimrun.ops.weights.mindspore import from_torch


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


def blocks_of(network: nn.Cell) -> list[nn.Cell]:
    """What may be the blocks: the longest list of cells that all have linears in them."""
    lists = [
        list(cell)
        for _, cell in network.cells_and_names()
        if isinstance(cell, nn.CellList) and all(linear_names(one) and not is_linear(one) for one in cell)
    ]
    return max(lists, key=len, default=[])


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
    cell: Any = network
    for part in name.split("."):
        cell = cell[int(part)] if isinstance(cell, nn.CellList | nn.SequentialCell) else getattr(cell, part)
    return cell


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
