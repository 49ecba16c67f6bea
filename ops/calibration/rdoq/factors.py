"""Factored second moments of all linears of a model: together they take as much as the model, so the room has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from slimrun.ops.calibration.base import GradientNetwork
from slimrun.ops.memory import Room, give_back
from slimrun.ops.quant.feedback import Importance, importance, spread_slope
from slimrun.ops.quant.rdoq import RDOQ, ROW, SLOPE, WATERFILLED

from .statistics import Statistics


class Factors:
    """The importance of each linear, factored once an input, when it is first asked for.

    `factor` makes it of the first linear that reads the input and of the importance of rows.
    """

    def __init__(self, room: Room, factor: Callable[[str, Tensor], Importance] | None = None) -> None:
        self.room = room
        self.factor = factor
        self.rows: dict[str, tuple[str, Tensor]] = {}  # linear -> the first that reads its input, its rows' importance
        self.corrections: dict[str, float] = {}  # linear -> of what its errors cost; 1 where not known
        self.slopes: dict[str, Tensor] = {}  # linear -> its rows' slopes where they are no estimate
        self._inputs: dict[str, Importance] = {}  # by the first that reads an input

    def __setitem__(self, first: str, known: Importance) -> None:
        self._inputs[first] = replace(known, factor=self.room.keep(known.factor.cpu().contiguous()))

    def __contains__(self, name: str) -> bool:
        return name in self.rows or name in self._inputs

    def __getitem__(self, name: str) -> Importance:
        """The importance of the linear, with its own rows."""
        first, rows = self.rows[name]
        known = self._known(first, rows)
        factor = known.factor.to(rows.device)
        return replace(known, factor=factor, rows=rows, **self._own(name))

    def slope(self, name: str) -> Tensor:
        """`Importance.slope` of the linear, for which its factor is not read."""
        first, rows = self.rows[name]
        return replace(self._known(first, rows), rows=rows, **self._own(name)).slope

    def _own(self, name: str) -> dict[str, Any]:
        return {"correction": self.corrections.get(name, 1.0), "given": self.slopes.get(name)}

    def _known(self, first: str, rows: Tensor) -> Importance:
        if first not in self._inputs and self.factor is not None:
            self[first] = self.factor(first, rows)
            give_back()
        return self._inputs[first]

    def leave(self, name: str) -> None:
        """The linear's factor is not needed now."""
        self.room.release([self._inputs[self.rows[name][0]].factor])


def factored(network: GradientNetwork, statistics: Statistics, quantizer: RDOQ, room: Room) -> Factors:
    """What errors cost, by linear; statistics stay until all inputs have been asked for."""

    def factor(first: str, rows: Tensor) -> Importance:
        return importance(statistics.moment(first).to(rows.device), rows, quantizer.damping)

    factors = Factors(room, factor)
    for name, rows in statistics.rows.items():
        weight, _ = network.affine(name)
        factors.rows[name] = (statistics.first[name], rows.to(weight.device))
        if quantizer.steps == ROW:
            factors.slopes[name] = spread_slope(weight)
        elif quantizer.steps != SLOPE:  # waterfilling leaves a tensor its step beside the scales that its rows took
            weights = rows if quantizer.columns == WATERFILLED else torch.ones_like(rows)
            factors.slopes[name] = spread_slope(weight, weights.to(weight.device))
    return factors
