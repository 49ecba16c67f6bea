"""Folding a smoothing into a model, in any framework: which norms take it, their new weights and biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.smooth import Smoothing, find_smoothing

from .base import Smoothable
from .states import Walk
from .wiring import NOT_REACHED, OFFSETS, OTHER_FUNCTION, Observations, divided, others_may_read, skipped

TOLERANCE = 1e-5  # of what a whole network gives with powers of two as scales, which round nothing,
HALF_TOLERANCE = 1e-3  # but the smallest numbers of half precision


@torch.no_grad()
def smooth(
    walk: Walk, quantizer: Quantizer, selected: set[str], *, shifts: bool = True, asked: str = "do_smooth=true"
) -> tuple[list[str], list[str]]:
    """Smooth every norm that feeds a selected linear; returns the names of the changed norms, and notes.

    A norm that is no affine one, or whose output the model uses in another way than through linears, stays as it is,
    and a note says so, with what `asked` for it. Without `shifts` nothing is given a bias that has none.
    """
    network, seen = walk.network, Observations(len(walk.samples))
    with network.observing(seen):
        for _ in walk:
            seen.end_run()
    norms = {name: norm.readers for name, norm in seen.norms.items() if selected.intersection(norm.readers)}
    linears = network.linears()
    hidden = [name for name, readers in norms.items() if others_may_read(linears, (name, *readers), seen.reached)]
    without = dict.fromkeys(hidden, NOT_REACHED)
    offsets = network.foldable(
        {name: readers for name, readers in norms.items() if name not in without}, walk.run_first
    )
    without |= {name: OTHER_FUNCTION for name in norms if name not in without and name not in offsets}
    for name, offset in offsets.items():
        norm = seen.norms[name]
        weights = [network.affine(reader)[0] for reader in norm.readers]
        smoothing = find_smoothing(norm.tokens, norm.low, norm.high, weights, quantizer, shifts=shifts)
        scale = _fold_norm(network, name, smoothing, offset, shifts=shifts)
        for reader in norm.readers:
            weight, bias = network.affine(reader)
            moved = weight.float() @ smoothing.shift if shifts else None
            if moved is not None and bias is not None:
                moved += bias.float()
            network.set_affine(reader, weight.float() * scale, moved)
        network.room.release([*weights, *(network.affine(reader)[0] for reader in norm.readers)])
    return list(offsets), skipped(asked, without)


class LastNorm(Observations):
    """What the norm that ran last gave, float32 [m, c]: nearly all of what a network computes shows there."""

    def __init__(self) -> None:
        super().__init__(1)
        self.name = ""
        self.values = torch.empty(0)

    def gave(self, name: str, out: Any, values: Tensor) -> None:
        """Keep what the norm gave."""
        self.name, self.values = name, values.detach().reshape(-1, values.shape[-1]).to(torch.float32, copy=True)

    def read(self, name: str, given: Any) -> None:
        """Nothing: what linears read does not matter here."""


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
    offsets = {}
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
                offsets[name] = offset
                break
    return offsets


def _fold_norm(network: Smoothable, name: str, smoothing: Smoothing, offset: float, *, shifts: bool) -> Tensor:
    """Give the norm the smoothing; the scale [c] that it then divides by."""
    weight, bias = network.affine(name)
    stored, scale = divided(weight, smoothing.scale, offset)
    old = torch.zeros_like(smoothing.shift) if bias is None else bias.float()
    network.set_affine(name, stored, (old - smoothing.shift) / scale if shifts or bias is not None else None)
    return scale
