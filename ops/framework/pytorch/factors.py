"""Factored second moments of all linears of a model, in files: together they take as much memory as the model."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from slimrun.ops.quant.rdoq import Importance
from slimrun.ops.scratch import ScratchFolder


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
