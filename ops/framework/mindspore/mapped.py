"""Weights of a network that memory has no room for: in mapped files, out of memory again once they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mindspore import nn

from slimrun.ops.memory import Room
from slimrun.ops.weights.mindspore import to_torch


@contextmanager
def released_after_use(network: nn.Cell, room: Room) -> Iterator[None]:
    """Meanwhile the weights of each cell leave memory when it has run in PyNative, if room is short."""

    def release(cell: nn.Cell, *_: Any) -> None:
        room.release(numbers(cell, expand=False))

    cells = [cell for _, cell in network.cells_and_names()] if room.full else []
    handles = [cell.register_forward_hook(release) for cell in cells]
    try:
        yield
    finally:
        for handle in handles:  # a graph would compile them
            handle.remove()


def numbers(network: nn.Cell, *, expand: bool = True) -> Iterator[torch.Tensor]:
    """The parameters' own numbers, those of the cells within too unless told not to `expand`."""
    return (to_torch(parameter) for parameter in network.get_parameters(expand))
