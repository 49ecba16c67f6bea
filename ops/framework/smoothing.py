"""Folding a smoothing into a model, in any framework: which norms feed which linears, their new weights and biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ops.quant.base import Quantizer
from ops.quant.smooth import Smoothing, find_smoothing

SAMPLE_TOKENS = 128  # outputs of each norm that the search looks at
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


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
        if id(given) in self._given:
            readers = self.norms[self._given[id(given)][0]].readers
            if name not in readers:
                readers.append(name)

    def end_run(self) -> None:
        """Forget the tensors of a run."""
        self._given.clear()


class Smoothable(Protocol):
    """What smoothing needs of a model."""

    def observing(self, seen: Observations) -> AbstractContextManager[None]:
        """Meanwhile every norm (by class name, with a weight [c]) and every linear reports to `seen`."""

    def affine(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a norm or a linear."""

    def set_affine(self, name: str, weight: Tensor, bias: Tensor) -> None:
        """Give a norm or a linear this weight and this bias, one that had none too."""

    def apply(self, name: str, rows: Tensor) -> Tensor:
        """What the norm or linear gives for rows [m, c]."""

    def first_tensor(self, output: Any) -> Tensor:
        """The first tensor of what a run gave."""


@torch.no_grad()
def smooth(
    network: Smoothable, quantizer: Quantizer, selected: set[str], runs: Sequence[Callable[[], Any]]
) -> list[str]:
    """Smooth every norm that feeds a selected linear; returns the names of the changed norms.

    `runs` run the model once for each calibration sample. ValueError when a norm is not an affine one, or when the
    model computes something else afterwards (it then uses a norm's output in a way that nobody can see).
    """
    seen = Observations(len(runs))
    with network.observing(seen):
        outputs = []
        for run in runs:
            outputs.append(run())
            seen.end_run()
            del outputs[1:]
    before = network.first_tensor(outputs[0]).clone()
    changed = []
    for name, norm in seen.norms.items():
        if selected.intersection(norm.readers):
            weights = [network.affine(reader)[0] for reader in norm.readers]
            smoothing = find_smoothing(norm.tokens, norm.low, norm.high, weights, quantizer.quantize_weight)
            _fold_norm(network, name, smoothing)
            for reader in norm.readers:
                _fold_linear(network, reader, smoothing)
            changed.append(name)
    after = network.first_tensor(runs[0]())
    distance = float((after.float() - before.float()).norm() / before.float().norm())
    if not distance <= TOLERANCE.get(before.dtype, 1e-1):
        raise ValueError(
            f"do_smooth=true changes what this model computes by {distance:.1%}: a norm's output is used beside its "
            "linears; take do_smooth=false"
        )
    return changed


def _fold_norm(network: Smoothable, name: str, smoothing: Smoothing) -> None:
    weight, bias = network.affine(name)
    probe = _probe(weight)
    before = network.apply(name, probe).float()
    old = 0 if bias is None else bias.float()
    network.set_affine(name, weight.float() / smoothing.scale, (old - smoothing.shift) / smoothing.scale)
    expected = (before - smoothing.shift) / smoothing.scale
    if not _close(network.apply(name, probe), expected):
        raise ValueError(f"do_smooth=true: the norm {name} is not normalization times weight")


def _fold_linear(network: Smoothable, name: str, smoothing: Smoothing) -> None:
    weight, bias = network.affine(name)
    probe = _probe(weight)
    expected = network.apply(name, probe)
    moved = weight.float() @ smoothing.shift
    network.set_affine(name, weight.float() * smoothing.scale, moved if bias is None else bias.float() + moved)
    if not _close(network.apply(name, ((probe.float() - smoothing.shift) / smoothing.scale).to(probe.dtype)), expected):
        raise ValueError(f"do_smooth=true: the linear {name} is not weight times input plus bias")


def _probe(weight: Tensor) -> Tensor:
    """One input [1, c] of a norm or linear."""
    return torch.linspace(-1, 1, weight.shape[-1], dtype=weight.dtype, device=weight.device).reshape(1, -1)


def _close(found: Tensor, expected: Tensor) -> bool:
    error = float((found.float() - expected.float()).abs().max())
    return error <= TOLERANCE.get(found.dtype, 1e-1) * float(expected.float().abs().max())
