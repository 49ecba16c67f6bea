"""Factored second moments of all linears of a model, in files: together they take as much memory as the model."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from slimrun.ops.calibration.base import GradientNetwork
from slimrun.ops.memory import give_back
from slimrun.ops.quant.rdoq import Importance, importance
from slimrun.ops.scratch import ScratchFolder

from .fisher import Statistics


class Factors:
    """The importance of each linear, factored once an input."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, Tensor]] = {}  # linear -> the first that reads its input, its rows' importance
        self.corrections: dict[str, float] = {}  # linear -> of what its errors cost; 1 where not known
        self._files: dict[str, Path] = {}
        self._folder = ScratchFolder("slimrun-factors")

    def __setitem__(self, first: str, known: Importance) -> None:
        self._files[first] = self._folder.path / f"{len(self._files)}.safetensors"
        save_file({"factor": known.factor.contiguous(), "order": known.order.contiguous()}, self._files[first])

    def __contains__(self, name: str) -> bool:
        return name in self.rows or name in self._files

    def __getitem__(self, name: str) -> Importance:
        """Of the linear, with its own rows."""
        first, rows = self.rows[name]
        stored = load_file(self._files[first], device=str(rows.device))
        return Importance(stored["factor"], stored["order"], rows, self.corrections.get(name, 1.0))


def factored(network: GradientNetwork, statistics: Statistics, damping: float) -> Factors:
    """What errors cost, by linear; inputs that are shared are factored once."""
    factors = Factors()
    for name, rows in statistics.rows.items():
        first, device = statistics.first[name], network.affine(name)[0].device
        if first == name or first not in factors:
            factors[first] = importance(statistics.moment(first).to(device), rows, damping)
        factors.rows[name] = (first, rows.to(device))
    give_back()
    return factors
