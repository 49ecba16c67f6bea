"""Factored second moments of all linears of a model: together they take as much as the model, so the room has them."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from slimrun.ops.calibration.base import GradientNetwork
from slimrun.ops.calibration.journal import Journal, Tensors, by_name
from slimrun.ops.memory import Room, give_back, release
from slimrun.ops.quant.feedback import Importance, importance, spread_slope
from slimrun.ops.quant.rdoq import RDOQ, ROW, SLOPE, WATERFILLED

from .statistics import Statistics

FACTORS = "factors"  # the kind of notes in the journal
log = logging.getLogger(__name__)


class Factors:
    """The importance of each linear, factored once an input, when it is first asked for.

    `factor` makes it of the first linear that reads the input and of the importance of rows. What it made lies in the
    room until the journal has it, and then in the journal's files.
    """

    def __init__(
        self, room: Room, factor: Callable[[str, Tensor], Importance] | None = None, journal: Journal | None = None
    ) -> None:
        self.room = room
        self.factor = factor
        self.journal = journal or Journal()
        self.rows: dict[str, tuple[str, Tensor]] = {}  # linear -> the first that reads its input, its rows' importance
        self.corrections: dict[str, float] = {}  # linear -> of what its errors cost; 1 where not known
        self.slopes: dict[str, Tensor] = {}  # linear -> its rows' slopes where they are no estimate
        self._inputs: dict[str, Tensors] = {}  # by the first that reads an input, the parts that it decides
        self._new: list[str] = []  # those of them that are not noted
        for note in self.journal.notes(FACTORS):
            self._inputs |= by_name(note)
        if self._inputs:
            log.info("%s: goes on after %d inputs, where it was stopped", FACTORS, len(self._inputs))

    def __setitem__(self, first: str, known: Importance) -> None:
        factor = known.factor.cpu().contiguous()
        self._inputs[first] = {"factor": factor, "columns": known.columns, "order": known.order}
        self._new.append(first)
        if self.journal.due:
            self._note()  # whose file has it then
        else:
            self._inputs[first]["factor"] = self.room.keep(factor)

    def __contains__(self, name: str) -> bool:
        return name in self.rows or name in self._inputs

    def __getitem__(self, name: str) -> Importance:
        """The importance of the linear, with its own rows."""
        _, rows = self.rows[name]
        return self._importance(name, {part: one.to(rows.device) for part, one in self._known(name).items()})

    def slope(self, name: str) -> Tensor:
        """`Importance.slope` of the linear, for which its factor is not read."""
        return self._importance(name, self._known(name)).slope

    def _importance(self, name: str, parts: Tensors) -> Importance:
        own = self.rows[name][1], self.corrections.get(name, 1.0), self.slopes.get(name)
        return Importance(parts["factor"], parts["columns"], parts["order"], *own)

    def _known(self, name: str) -> Tensors:
        first, rows = self.rows[name]
        if first not in self._inputs and self.factor is not None:
            self[first] = self.factor(first, rows)
            give_back()
        return self._inputs[first]

    def _note(self) -> None:
        new = {f"{first}/{part}": tensor for first in self._new for part, tensor in self._inputs[first].items()}
        self._inputs |= by_name(self.journal.add(FACTORS, new))
        self._new = []

    def leave(self, name: str) -> None:
        """The linear's factor is not needed now: one that lies in a file leaves memory."""
        release([self._inputs[self.rows[name][0]]["factor"]])


def factored(
    network: GradientNetwork, statistics: Statistics, quantizer: RDOQ, room: Room, journal: Journal | None = None
) -> Factors:
    """What errors cost, by linear; statistics stay until all inputs have been asked for."""

    def factor(first: str, rows: Tensor) -> Importance:
        return importance(statistics.moment(first).to(rows.device), rows, quantizer.damping)

    factors = Factors(room, factor, journal)
    for name, rows in statistics.rows.items():
        weight, _ = network.affine(name)
        factors.rows[name] = (statistics.first[name], rows.to(weight.device))
        if quantizer.steps == ROW:
            factors.slopes[name] = spread_slope(weight)
        elif quantizer.steps != SLOPE:  # waterfilling leaves a tensor its step beside the scales that its rows took
            weights = rows if quantizer.columns == WATERFILLED else torch.ones_like(rows)
            factors.slopes[name] = spread_slope(weight, weights.to(weight.device))
        release([weight])
    return factors
