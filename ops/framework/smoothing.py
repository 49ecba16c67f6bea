"""Folding a smoothing into a model, in any framework: which norms feed which linears, their new weights and biases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.smooth import Smoothing, find_smoothing

OFFSETS = (0.0, 1.0)  # what norms add to their weight: Gemma's and their like are stored around zero
OTHER_FUNCTION = "the model computes something else with it"
NOT_REACHED = "linears that may read it were not reached"
SAMPLE_TOKENS = 128  # outputs of each norm that the search looks at
TOLERANCE = 1e-5  # of what a whole network gives with powers of two as scales, which round nothing,
HALF_TOLERANCE = 1e-3  # but the smallest numbers of half precision


@dataclass
class Norm:
    """What a norm gave during calibration, and the linears that read it."""

    low: Tensor  # float32 [c]
    high: Tensor  # float32 [c]
    tokens: Tensor  # float32 [about SAMPLE_TOKENS, c]
    readers: list[str] = field(default_factory=list)


class Observations:
    """Which norm gave what, over `runs` runs, and which linear read it: told by the identity of the tensor."""

    def __init__(self, runs: int) -> None:
        self.norms: dict[str, Norm] = {}
        self.reached: dict[str, None] = {}  # linears in the order in which they first ran
        self._wanted = SAMPLE_TOKENS // runs + 1
        self._given: dict[int, tuple[str, Any]] = {}  # keeps the tensors alive, so that no id is used twice in a run

    def gave(self, name: str, out: Any, values: Tensor) -> None:
        """The norm gave the framework's tensor `out`, whose numbers are `values` [..., c]."""
        self._given[id(out)] = name, out
        rows = values.detach().reshape(-1, values.shape[-1]).to(torch.float32)
        low, high = rows.amin(dim=0), rows.amax(dim=0)
        norm = self.norms.setdefault(name, Norm(low, high, rows[:0]))
        norm.low, norm.high = torch.minimum(norm.low, low), torch.maximum(norm.high, high)
        norm.tokens = torch.cat([norm.tokens, rows[:: -(-len(rows) // self._wanted)]])

    def read(self, name: str, given: Any) -> None:
        """The linear was given the framework's tensor `given`."""
        self.reached.setdefault(name)
        if id(given) in self._given:
            readers = self.norms[self._given[id(given)][0]].readers
            if name not in readers:
                readers.append(name)

    def end_run(self) -> None:
        """Forget the tensors of a run."""
        self._given.clear()


class Smoothable(Protocol):
    """What smoothing needs of a model."""

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name and shape [n, k] of every float linear, in module order."""

    def observing(self, seen: Observations) -> AbstractContextManager[None]:
        """Meanwhile every norm (by class name, with a weight [c]) and every linear reports to `seen`."""

    def foldable(self, norms: Mapping[str, Sequence[str]], run: Callable[[], Any]) -> dict[str, float]:
        """Of norms, each with the linears that read it, those that can give something else if the linears make up.

        With each what it adds to its weight: 0, or 1 where it is stored around zero. `run` runs the model.
        """

    def affine(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a norm or a linear."""

    def set_affine(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        """Give a norm or a linear this weight and this bias, one that had none too; None: what it has stays."""

    def first_tensor(self, output: Any) -> Tensor:
        """The first tensor of what a run gave."""


@torch.no_grad()
def smooth(
    network: Smoothable, quantizer: Quantizer, selected: set[str], runs: Sequence[Callable[[], Any]]
) -> tuple[list[str], list[str]]:
    """Smooth every norm that feeds a selected linear; returns the names of the changed norms, and notes.

    `runs` run the model once for each calibration sample. A norm that is no affine one, or whose output the model uses
    in another way than through linears, stays as it is, and a note says so.
    """
    seen = Observations(len(runs))
    with network.observing(seen):
        for run in runs:
            run()
            seen.end_run()
    norms = {name: norm.readers for name, norm in seen.norms.items() if selected.intersection(norm.readers)}
    linears = network.linears()
    hidden = [name for name, readers in norms.items() if others_may_read(linears, (name, *readers), seen.reached)]
    without = dict.fromkeys(hidden, NOT_REACHED)
    offsets = network.foldable({name: readers for name, readers in norms.items() if name not in without}, runs[0])
    without |= {name: OTHER_FUNCTION for name in norms if name not in without and name not in offsets}
    for name, offset in offsets.items():
        norm = seen.norms[name]
        weights = [network.affine(reader)[0] for reader in norm.readers]
        smoothing = find_smoothing(norm.tokens, norm.low, norm.high, weights, quantizer.quantize_weight)
        scale = _fold_norm(network, name, smoothing, offset)
        for reader in norm.readers:
            weight, bias = network.affine(reader)
            moved = weight.float() @ smoothing.shift
            network.set_affine(reader, weight.float() * scale, moved if bias is None else bias.float() + moved)
    return list(offsets), skipped("do_smooth=true", without)


def others_may_read(linears: Mapping[str, tuple[int, int]], parts: Sequence[str], reached: Collection[str]) -> bool:
    """Whether a linear that did not run stands among `parts`, the last of which reads an input of the same width.

    Experts without a token show nothing of what they would read.
    """
    around = common_path(parts)
    return any(
        name not in reached and shape[1] == linears[parts[-1]][1] and name.split(".")[: len(around)] == around
        for name, shape in linears.items()
    )


def common_path(parts: Sequence[str]) -> list[str]:
    """The names that lead to the smallest module that holds all these modules."""
    shared = []
    for names in zip(*(part.split(".")[:-1] for part in parts)):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return shared


def skipped(key: str, places: Mapping[str, str]) -> list[str]:
    """Notes, one a kind of place, that no scale is folded into these modules, and why; `key` asked for it."""
    counts = Counter(
        (".".join(part for part in name.split(".") if not part.isdecimal()), why) for name, why in places.items()
    )
    return [
        f"{key}: {count} fold{'s' * (count > 1)} into {kind} skipped, {why}" for (kind, why), count in counts.items()
    ]


def divided(weight: Tensor, scale: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Weight float32 [c] of a norm whose outputs are divided by `scale` [c], and the scale as the stored weight has it.

    A weight that is stored less an offset keeps few digits of what is near zero, so the readers must take what it says.
    """
    weight, dtype = weight.float(), weight.dtype
    if not offset:
        return weight / scale, scale
    whole = weight + offset
    largest = whole.abs() / (4 * torch.finfo(dtype).eps)
    scale = torch.where(largest > 0, torch.minimum(scale, largest), 1.0)
    stored = (whole / scale - offset).to(dtype).float()
    return stored, torch.where(largest > 0, whole / (stored + offset), 1.0)


class LastNorm(Observations):
    """What the norm that ran last gave, float32 [m, c]: nearly all of what a network computes shows there."""

    def __init__(self) -> None:
        super().__init__(1)
        self.name = ""
        self.values = torch.empty(0)

    def gave(self, name: str, out: Any, values: Tensor) -> None:
        """As of the base class."""
        self.name, self.values = name, values.detach().reshape(-1, values.shape[-1]).to(torch.float32, copy=True)

    def read(self, name: str, given: Any) -> None:
        """Of no interest."""


def foldable_by_runs(
    network: Smoothable, norms: Mapping[str, Sequence[str]], run: Callable[[], Any]
) -> dict[str, float]:
    """`Smoothable.foldable` by what the whole network gives with scaled weights, norm after norm."""

    def outcome() -> tuple[str, list[Tensor]]:
        seen = LastNorm()
        with network.observing(seen):
            given = network.first_tensor(run()).to(torch.float32, copy=True)
        return seen.name, [given, seen.values]

    last, before = outcome()
    found = {}
    for name, readers in norms.items():
        saved = {part: network.affine(part)[0].clone() for part in (name, *readers)}
        weight, bias = network.affine(name)
        bias = None if bias is None else bias.clone()
        scale = torch.exp2(torch.arange(len(weight), device=weight.device) % 5 - 2)
        tolerance = TOLERANCE if weight.dtype == torch.float32 else HALF_TOLERANCE
        for offset in OFFSETS:
            scaled = (saved[name].float() + offset) / scale - offset
            network.set_affine(name, scaled, None if bias is None else bias / scale)
            for reader in readers:
                network.set_affine(reader, saved[reader] * scale, None)
            _, after = outcome()
            network.set_affine(name, saved[name], bias)
            for reader in readers:
                network.set_affine(reader, saved[reader], None)
            shown = 1 if name == last else 2  # its own outputs are scaled
            if all((now - then).norm() <= tolerance * then.norm() for now, then in zip(after[:shown], before)):
                found[name] = offset
                break
    return found


def _fold_norm(network: Smoothable, name: str, smoothing: Smoothing, offset: float) -> Tensor:
    """Give the norm the smoothing; the scale [c] that it then divides by."""
    weight, bias = network.affine(name)
    stored, scale = divided(weight, smoothing.scale, offset)
    old = 0 if bias is None else bias.float()
    network.set_affine(name, stored, (old - smoothing.shift) / scale)
    return scale
