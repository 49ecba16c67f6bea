"""Factored second moments of all linears of a model: together they take as much as the model, so the room has them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from slimrun.ops.calibration.base import GradientNetwork
from slimrun.ops.memory import Room, give_back
from slimrun.ops.quant.feedback import Importance, importance

from .statistics import Statistics


class Factors:
    """The importance of each linear, factored once an input."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.rows: dict[str, tuple[str, Tensor]] = {}  # linear -> the first that reads its input, its rows' importance
        self.corrections: dict[str, float] = {}  # linear -> of what its errors cost; 1 where not known
        self._inputs: dict[str, Importance] = {}  # by the first that reads an input

    def __setitem__(self, first: str, known: Importance) -> None:
        self._inputs[first] = replace(known, factor=self.room.keep(known.factor.cpu().contiguous()))

    def __contains__(self, name: str) -> bool:
        return name in self.rows or name in self._inputs

    def __getitem__(self, name: str) -> Importance:
        """The importance of the linear, with its own rows."""
        first, rows = self.rows[name]
        known = self._inputs[first]
        factor = known.factor.to(rows.device)
        return replace(known, factor=factor, rows=rows, correction=self.corrections.get(name, 1.0))

    def slope(self, name: str) -> Tensor:
        """`Importance.slope` of the linear, for which its factor is not read."""
        first, rows = self.rows[name]
        return replace(self._inputs[first], rows=rows, correction=self.corrections.get(name, 1.0)).slope

    def leave(self, name: str) -> None:
        """The linear's factor is not needed now."""
        self.room.release([self._inputs[self.rows[name][0]].factor])


def factored(network: GradientNetwork, statistics: Statistics, damping: float, room: Room) -> Factors:
    """What errors cost, by linear; inputs that are shared are factored once."""
    factors = Factors(room)
    for name, rows in statistics.rows.items():
        first, device = statistics.first[name], network.affine(name)[0].device
        if first == name or first not in factors:
            factors[first] = importance(statistics.moment(first).to(device), rows, damping)
            give_back()
        factors.rows[name] = (first, rows.to(device))
    return factors
