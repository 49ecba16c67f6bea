"""What a weight error costs, measured: second moments of the inputs and squared gradients of the outputs.

All samples go forward and back through the parts of the model, on labels that the model itself draws (so it is the
Fisher information; the text's own labels would give the empirical one: Kunstner et al. 2019). No weight's gradient is
computed, and the sums of one part exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimrun.ops.calibration.base import Arrays, GradientNetwork, Progress, Remember, Sample
from slimrun.ops.calibration.blocks import PassedBy
from slimrun.ops.calibration.journal import Journal, Noted, Tensors
from slimrun.ops.calibration.wiring import first_readers
from slimrun.ops.memory import Room, give_back

from .gradient_walk import GradientWalk
from .gradients import gradients
from .head import CHUNK, head_gradient, surprise
from .lookups import Lookups
from .moments import POWER, Moment
from .statistics import Statistics

FISHER = "fisher"  # the kind of notes in the journal


class FisherStatistics:
    """Sums over samples for linears; `first` says of each the first that reads the same input.

    An input is kept once, under the first of its readers.
    """

    def __init__(
        self,
        network: GradientNetwork,
        first: Mapping[str, str],
        samples: Sequence[Sample],
        parts: int,
        room: Room,
        progress: Progress,
        lookups: Lookups | None = None,
        journal: Journal | None = None,
        *,
        alike: bool = False,
    ) -> None:
        self.network = network
        self.alike = alike  # all tokens and rows count the same, whatever their gradients
        self.lookups = lookups
        self.first = dict(first)
        self.parts = parts
        self.room = room
        self.states: list[Tensor] = []  # of each sample, float32 [T, H]: the last hidden states
        self._moments: dict[str, Moment] = {}  # first -> tokens weighted by squared gradients
        self._weights: dict[str, Tensor] = {}  # first -> float32 [tokens of all samples], their weights
        self._reach: dict[str, Tensor] = {}  # first -> float32 [k], max|x|
        self._rows: dict[str, Tensor] = {}  # linear -> float32 [n], squared gradients
        self._inputs: dict[str, Tensor] = {}  # first -> of the sample that is under way
        self._tokens: dict[tuple[str, int], Tensor] = {}  # first, sample -> weights, until the input is there
        self._part_of: dict[str, int] = {}  # linear -> the part that runs it
        self.journal = journal or Journal()
        noted = Noted(self.journal, FISHER, self._ran, self._has_run)
        self._begin = partial(GradientWalk, network, samples, parts, room, self._head_gradient, noted)
        self._walk = self._begin()
        self._part, self._sample, self._done = self._walk.left, 0, self._walk.done
        self._again = False  # what runs is a block once more, for its gradients
        self._generator = torch.Generator().manual_seed(0)
        self._progress = progress

    def arrays(self, part: int) -> Arrays:
        """The arrays of one part in numpy; parts are asked for from the last on.

        `moment` (packed), `weights` and `reach` of inputs, `rows` of linears; with the last part `states.0`... of
        samples; `part` itself, so that none is empty. PassedBy where gradients would flow past the states between
        parts, or parts share a linear.
        """
        arrays: Arrays = {}
        if part >= self._part:  # it was not kept, or is gone from where it was
            self.journal.forget(FISHER)
            self._walk = self._begin()
            self._part, self._done = self.parts, 0
        while self._part > part:  # one that is known must be passed again all the same
            self._walk.note()  # arrays that were given are kept by now
            with gradients(self.network.model, again=self.parts == 1) as again:
                for _ in self._walk.forward():
                    self._step()
                self._part -= 1
                with self._watching(again):
                    for index in self._walk.back(self._part):
                        self._add_inputs(index)
                        self._step()
            arrays = self._part_arrays()
        return arrays

    def _head_gradient(self, index: int, hidden: Tensor) -> Tensor:
        """At the last hidden states [1, T, H], which are kept."""
        head = self.network.head()
        own = any(self.network.model.get_submodule(name) is head for name in self.first)  # it runs once a sample then
        chunk = hidden.shape[-2] if own else CHUNK
        self.states.append(self.room.keep(hidden.float().flatten(0, -2)))
        gradient = head_gradient(hidden, head, lambda logits, _: surprise(logits, self._generator), chunk)
        self._again = True
        return gradient

    def _part_arrays(self) -> Arrays:
        """What the sums are, which begin anew."""
        arrays = {f"{name}.rows": rows for name, rows in self._rows.items()}
        for name, weights in self._weights.items():
            total = weights.sum().clamp_min(1e-30)
            arrays[f"{name}.moment"] = self._moments[name].packed().div_(total)
            arrays[f"{name}.weights"] = weights / total
            arrays[f"{name}.reach"] = self._reach[name]
        if self._part + 1 == self.parts:
            arrays |= {f"states.{index}": states for index, states in enumerate(self.states)}
        if self._part == 0 and self.lookups is not None:
            arrays |= self.lookups.arrays()
        for sums in (self._rows, self._weights, self._moments, self._reach):
            sums.clear()
        return {"part": np.array(self._part), **{key: tensor.cpu().numpy() for key, tensor in arrays.items()}}

    @contextmanager
    def _watching(self, again: Sequence[nn.Module]) -> Iterator[None]:
        """`again` are the blocks that run once more before their gradients: inputs are kept only then."""
        model: Any = self.network.model
        later = {id(module) for block in again for module in block.modules()}
        handles = []
        for name, first in self.first.items():
            linear = model.get_submodule(name)
            if first == name:
                handles.append(linear.register_forward_pre_hook(partial(self._read, name, id(linear) in later)))
            handles.append(linear.register_forward_hook(partial(self._gave, name, id(linear) in later)))
        handles += [table.register_forward_hook(self._begin_gradients) for table in embeddings(model)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _read(self, name: str, later: bool, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        if self._counts() and (self._again or not later) and given[0].numel():  # an expert may have no tokens
            self._inputs[name] = given[0].detach().float().flatten(0, -2)

    def _gave(self, name: str, later: bool, _: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> None:
        if self._counts() and not (self._again and later):
            if self._part_of.setdefault(name, self._part) != self._part:
                raise PassedBy
            tensor: Any = out  # torch leaves register_hook untyped
            tensor.register_hook(partial(self._backward, name))

    def _begin_gradients(self, table: nn.Module, _: Any, out: Tensor) -> Tensor:
        model: Any = self.network.model
        if self.lookups is not None and self._counts() and table is model.get_input_embeddings():
            seen: Any = out.requires_grad_()
            seen.register_hook(partial(self.lookups.add, self._sample))
        return out.requires_grad_().clone()  # a model may change its embeddings in place

    def _counts(self) -> bool:
        """Whether what runs is to have gradients now."""
        return torch.is_grad_enabled() and self.network.live

    def _backward(self, name: str, gradient: Tensor) -> None:
        key = self.first[name], self._sample
        rows, weights = _importance(gradient.detach().float().flatten(0, -2).square(), alike=self.alike)
        self._rows[name] = self._rows[name].add_(rows) if name in self._rows else rows
        self._tokens[key] = self._tokens[key] + weights if key in self._tokens else weights

    def _add_inputs(self, index: int) -> None:
        """Add the inputs of a sample in this part, their tokens weighted by the gradients of their readers."""
        for name, x in self._inputs.items():
            if (name, index) in self._tokens:
                weights = self._tokens.pop((name, index))
                if name not in self._moments:
                    self._moments[name] = Moment(x)
                self._moments[name].add(x * weights.sqrt().unsqueeze(1))
                self._weights[name] = torch.cat([self._weights.get(name, weights[:0]), weights])
                reach = x.abs().amax(dim=0)
                self._reach[name] = torch.maximum(self._reach.get(name, reach), reach)
        self._inputs.clear()
        self._sample = (index + 1) % len(self._walk.samples)
        self._again = False

    def _ran(self) -> Tensors:
        """The part that runs each linear, -1 where none has so far."""
        return {"part of": torch.tensor([self._part_of.get(name, -1) for name in self.first])}

    def _has_run(self, found: Tensors) -> None:
        parts = zip(self.first, found["part of"].tolist(), strict=True)
        self._part_of = {name: part for name, part in parts if part >= 0}

    def _step(self) -> None:
        self._done += 1
        self._progress(self._done, self._walk.steps, "statistics")


def _importance(squared: Tensor, *, alike: bool) -> tuple[Tensor, Tensor]:
    """(of each row [n], of each token [T]) by squared gradients [T, n]; with `alike` 1 whatever these are."""
    lengths = squared.sum(dim=1).clamp_min(1e-30)
    if alike:
        return torch.ones_like(squared[0]), torch.ones_like(lengths)
    return lengths.pow(POWER - 1) @ squared, lengths.pow(POWER)


def measure(
    network: GradientNetwork,
    linears: Sequence[str],
    samples: Sequence[Sample],
    parts: int,
    room: Room,
    remember: Remember,
    progress: Progress,
    *,
    lookups: bool = False,
    alike: bool = False,
    journal: Journal | None = None,
) -> Statistics:
    """The Fisher statistics of these linears in the float model, which runs in so many parts; of embeddings if asked.

    `alike` gives plain second moments of inputs, of all tokens and for all rows.
    Where gradients flow past the states between parts it runs as a whole. The room has what is made beside it, the
    journal how far the samples have come, so that no part is passed again whose arrays are remembered.
    """
    journal = journal or Journal()
    # an expert that the glance does not reach reads for itself, as far as this shows
    first = {name: name for name in linears}
    first |= first_readers(network.model, linears, partial(network.glance, samples[0]))

    def measured(parts: int) -> Statistics:
        own = Lookups() if lookups else None
        fisher = FisherStatistics(network, first, samples, parts, room, progress, own, journal, alike=alike)
        kept = [
            _kept(room, remember(partial(fisher.arrays, part), f"part {part} of {parts}"))
            for part in reversed(range(parts))
        ]
        return Statistics(first, kept, parts, room)

    try:
        statistics = measured(parts)
    except PassedBy:
        journal.forget(FISHER)
        statistics = measured(1)
    journal.forget(FISHER)
    give_back()
    return statistics


def _kept(room: Room, arrays: Arrays) -> Mapping[str, Any]:
    """Arrays that lie in memory go to the room; those of a file are read when they are asked for."""
    if not isinstance(arrays, dict):
        return arrays
    return {key: room.keep(torch.from_numpy(array)) for key, array in arrays.items()}


def embeddings(model: Any) -> list[nn.Module]:
    """Where gradients begin, so that no table needs one: what the model calls its embeddings, and all like them."""
    modules: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    with suppress(NotImplementedError, AttributeError):  # custom code rarely says
        own = model.get_input_embeddings()
        if isinstance(own, nn.Module) and own not in modules:
            modules.append(own)
    return modules
