"""What a weight error costs, measured: second moments of the inputs and squared gradients of the outputs.

One forward and one backward pass a prompt, part by part of the model, on labels that the model itself draws (so it is
the Fisher information; the text's own labels would give the empirical one: Kunstner et al. 2019). No weight's gradient
is computed, and logits exist for a few tokens at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slimrun.ops.calibration.base import Arrays, GradientNetwork, Progress, Remember, Sample
from slimrun.ops.calibration.blocks import PassedBy
from slimrun.ops.calibration.wiring import first_readers
from slimrun.ops.memory import give_back

from .gradients import GIVE_BACK, gradients
from .moments import add_moment, packed_size, unpacked

POWER = 0.5  # of the squared gradients: with 1 a few dozen of 8000 tokens make up the sums, and steps go astray
CHUNK = 64  # tokens whose logits exist at once
MOMENTS = 2**30  # bytes of moments in memory at once,
SHARE = 0.5  # or this much of the model as float32, if that is more


class FisherStatistics:
    """Sums over samples for some linears; `first` says of each the first that reads the same input.

    An input is kept once, under the first of its readers.
    """

    def __init__(
        self, network: GradientNetwork, linears: Sequence[str], first: Mapping[str, str], parts: int = 1
    ) -> None:
        self.network = network
        self.linears = list(linears)
        self.first = dict(first)
        self.parts = parts  # in which the network runs
        self.moments: dict[str, Tensor] = {}  # first -> packed, tokens weighted by squared gradients
        self.weights: dict[str, Tensor] = {}  # first -> float32 [tokens of all samples], their weights
        self.reach: dict[str, Tensor] = {}  # first -> float32 [k], max|x|
        self.rows: dict[str, Tensor] = {}  # linear -> float32 [n], squared gradients
        self.states: list[Tensor] = []  # of each sample, float32 [T, H]: the last hidden states
        self._inputs: dict[str, Tensor] = {}  # of this sample, until all that read them have their gradients
        self._sample: dict[str, Tensor] = {}
        self._owed: Counter[str] = Counter()  # first -> readers whose gradients are still to come
        self._forward = False  # the first time through the model, not a block again

    def add(self, sample: Sample, generator: torch.Generator) -> None:
        """One sample: forward part by part, and back from the last to the first, which run again for their gradients.

        PassedBy where gradients would flow past the states between parts.
        """
        self._owed = Counter(self.first[name] for name in self.linears)
        with gradients(self.network.model, again=self.parts == 1) as again, self._watching(again):
            given: list[Tensor | None] = [None]  # to each part
            with torch.no_grad():
                for part in range(self.parts - 1):
                    given.append(self._run(part, sample, given[-1]))
            gradient = None
            while given:
                state = given.pop()
                if state is not None:
                    state.requires_grad_()
                out = self._run(len(given), sample, state)
                if gradient is None:
                    gradient = self._head_gradient(out, generator)
                torch.autograd.backward(out, gradient)
                gradient = None if state is None else state.grad
                if len(given) % GIVE_BACK == 0:
                    give_back()
        for name in self._inputs.keys() & self._sample.keys():  # not all of their readers had gradients
            self._add_input(name)
        self._inputs.clear()

    def _run(self, part: int, sample: Sample, state: Tensor | None) -> Tensor:
        self._forward = True
        if self.parts == 1:
            out = self.network.states(sample)
        else:  # a part may change its state in place
            out = self.network.states_part(part, sample, None if state is None else state.clone())
        self._forward = False
        return out

    def _head_gradient(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """At the last hidden states [1, T, H], which are kept."""
        head = self.network.head()
        own = any(self.network.model.get_submodule(name) is head for name in self.linears)  # it runs once a sample then
        chunk = hidden.shape[-2] if own else CHUNK
        self.states.append(hidden.detach().float().flatten(0, -2))
        return head_gradient(hidden, head, lambda logits, _: surprise(logits, generator), chunk)

    def arrays(self) -> Arrays:
        """In numpy: `moment` (packed), `weights` and `reach` of inputs, `rows` of linears, `states.0`... of samples."""
        found = {f"states.{index}": states for index, states in enumerate(self.states)}
        found |= {f"{name}.rows": rows for name, rows in self.rows.items()}
        for name, weights in self.weights.items():
            total = weights.sum().clamp_min(1e-30)
            found[f"{name}.moment"] = self.moments[name].div_(total)
            found[f"{name}.weights"] = weights / total
            found[f"{name}.reach"] = self.reach[name]
        return {key: tensor.cpu().numpy() for key, tensor in found.items()}

    @contextmanager
    def _watching(self, again: Sequence[nn.Module]) -> Iterator[None]:
        """`again` are the blocks that run once more before their gradients: inputs are kept only then."""
        model: Any = self.network.model
        later = {id(module) for block in again for module in block.modules()}
        handles = []
        for name in self.linears:
            linear = model.get_submodule(name)
            if self.first[name] == name:
                handles.append(linear.register_forward_pre_hook(partial(self._read, name, id(linear) in later)))
            handles.append(linear.register_forward_hook(partial(self._gave, name, id(linear) in later)))
        handles += [table.register_forward_hook(_begin_gradients) for table in embeddings(model)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _read(self, name: str, later: bool, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        if self._counts() and not (later and self._forward):
            self._inputs[name] = given[0].detach().float().flatten(0, -2)
            if not self._owed[name]:
                self._add_input(name)

    def _gave(self, name: str, later: bool, _: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> None:
        if self._counts() and (self._forward or not later):
            tensor: Any = out  # torch leaves register_hook untyped
            tensor.register_hook(partial(self._backward, name))

    def _counts(self) -> bool:
        """Whether what runs is to have gradients now."""
        return torch.is_grad_enabled() and self.network.live

    def _backward(self, name: str, gradient: Tensor) -> None:
        first = self.first[name]
        squared = gradient.detach().float().flatten(0, -2).square()
        lengths = squared.sum(dim=1).clamp_min(1e-30)
        rows, weights = lengths.pow(POWER - 1) @ squared, lengths.pow(POWER)
        self.rows[name] = self.rows[name].add_(rows) if name in self.rows else rows
        self._sample[first] = self._sample[first] + weights if first in self._sample else weights
        self._owed[first] -= 1
        if not self._owed[first] and first in self._inputs:
            self._add_input(first)

    def _add_input(self, name: str) -> None:
        """Add an input of this sample, its tokens weighted by the gradients of its readers."""
        x, weights = self._inputs.pop(name), self._sample.pop(name)
        if name not in self.moments:
            self.moments[name] = x.new_zeros(packed_size(x.shape[1]))
        add_moment(self.moments[name], x * weights.sqrt().unsqueeze(1))
        self.weights[name] = torch.cat([self.weights.get(name, weights[:0]), weights])
        reach = x.abs().amax(dim=0)
        self.reach[name] = torch.maximum(self.reach.get(name, reach), reach)


def measure(
    network: GradientNetwork,
    shapes: Mapping[str, tuple[int, int]],
    samples: Sequence[Sample],
    parts: int,
    remember: Remember,
    progress: Progress,
) -> Statistics:
    """The Fisher statistics of linears of these shapes in the float model, in as many passes as moments need memory.

    The network runs in so many parts, or as a whole where gradients flow past the states between them.
    """
    first = first_readers(network.model, list(shapes), partial(network.glance, samples[0]))
    model_bytes = 4 * sum(parameter.numel() for parameter in network.model.parameters())
    passes: list[list[str]] = [[]]
    size = 0
    for name in dict.fromkeys(first.values()):
        moment = 4 * packed_size(shapes[name][1])
        if passes[-1] and size + moment > max(MOMENTS, SHARE * model_bytes):
            passes.append([])
            size = 0
        passes[-1].append(name)
        size += moment

    def measured(index: int, parts: int) -> Arrays:
        readers = [name for name in first if first[name] in passes[index]]
        statistics = FisherStatistics(network, readers, first, parts)
        generator = torch.Generator().manual_seed(0)
        for number, sample in enumerate(samples):
            statistics.add(sample, generator)
            progress(index * len(samples) + number + 1, len(passes) * len(samples))
        return statistics.arrays()

    def measured_in_parts(index: int) -> Arrays:
        try:
            return measured(index, parts)
        except PassedBy:
            return measured(index, 1)

    found = [remember(partial(measured_in_parts, index), f"part {index}") for index in range(len(passes))]
    give_back()
    return Statistics(first, found)


def embeddings(model: Any) -> list[nn.Module]:
    """Where gradients begin, so that no table needs one: what the model calls its embeddings, and all like them."""
    found: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    with suppress(NotImplementedError, AttributeError):  # custom code rarely says
        own = model.get_input_embeddings()
        if isinstance(own, nn.Module) and own not in found:
            found.append(own)
    return found


def _begin_gradients(_: nn.Module, __: Any, out: Tensor) -> Tensor:
    return out.requires_grad_().clone()  # a model may change its embeddings in place


@dataclass
class Statistics:
    """What was measured on the float model, and what folding makes of it."""

    first: dict[str, str]  # linear -> the first that reads the same input
    parts: Sequence[Arrays]  # of `FisherStatistics`; reading an array may mean reading a file
    rows: dict[str, Tensor] = field(default_factory=dict)  # linear -> squared gradients of its rows, folded
    scales: dict[str, Tensor] = field(default_factory=dict)  # first -> what its input is divided by

    def __getitem__(self, key: str) -> Tensor:
        """The array of this name; KeyError where no sample came by."""
        for part in self.parts:
            if key in part:
                return torch.from_numpy(part[key])
        raise KeyError(key)

    def states(self, samples: int) -> list[Tensor]:
        """The float model's last hidden states float32 [T, H] of each sample."""
        return [torch.from_numpy(self.parts[0][f"states.{number}"]) for number in range(samples)]

    def token_weights(self) -> dict[str, Tensor]:
        """Linear -> float32 [tokens of all samples]: a token's share of the mean squared gradient of its outputs."""
        return {name: self[f"{self.first[name]}.weights"] * rows.mean() for name, rows in self.rows.items()}

    def moment(self, first: str) -> Tensor:
        """float32 [k, k] of the folded model's input."""
        moment = unpacked(self[f"{first}.moment"], len(self[f"{first}.reach"]))
        scale = self.scales.get(first)
        return moment if scale is None else moment.div_(scale).div_(scale.unsqueeze(1))


def head_gradient(
    states: Tensor, head: Callable[[Tensor], Tensor], slope: Callable[[Tensor, slice], Tensor], chunk: int = CHUNK
) -> Tensor:
    """Gradient of a loss at states [..., T, H], of which `head` makes logits.

    `slope` gives the gradient at the logits of some tokens, float32 [t, V], and is told which they are.
    """
    give_back()  # what the blocks have freed, and below what is freed here
    rows = states.detach().flatten(0, -2)
    found = []
    for start in range(0, len(rows), chunk):
        where = slice(start, start + chunk)
        part = rows[where].requires_grad_()
        logits = head(part)
        with torch.no_grad():
            gradient = slope(logits.detach().float(), where).to(logits)
        found.append(torch.autograd.grad(logits, part, gradient)[0])
    give_back()
    return torch.cat(found).reshape(states.shape)


def surprise(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Gradient at logits [t, V] of -log p(label), the label of each token drawn from p = softmax(logits)."""
    shares = logits.softmax(dim=-1)
    cumulated = shares.cumsum(dim=-1)
    drawn = torch.rand(len(logits), 1, generator=generator).to(cumulated) * cumulated[:, -1:]
    labels = torch.searchsorted(cumulated, drawn).clamp_max(logits.shape[1] - 1)
    return shares.scatter_add_(1, labels, -torch.ones_like(drawn))
