"""Samples on their way forward through a model, and the gradients of a loss on their way back, part by part of it.

Each part runs again when its gradients are due (Chen et al. 2016), so that one part's graph of one sample is all that
lies in memory beside what each part is given of each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from slimrun.ops.calibration.base import GradientNetwork, Sample
from slimrun.ops.calibration.states import States
from slimrun.ops.memory import Room, give_back

GIVE_BACK = 12  # runs of a part between two returns of memory, after which it must be had anew


class GradientWalk:
    """A walk of samples through a network of so many parts: `forward`, then `back` through each from the last on.

    `at_head` makes of a sample's number and its last hidden states [1, T, H] the gradient there, and `room` has what
    parts are given. To be taken within `gradients` of the model. PassedBy where gradients would flow past the states
    between parts.
    """

    def __init__(
        self,
        network: GradientNetwork,
        samples: Sequence[Sample],
        parts: int,
        room: Room,
        at_head: Callable[[int, Tensor], Tensor],
    ) -> None:
        self.network = network
        self.samples = samples
        self.parts = parts
        self.at_head = at_head
        self.steps = (2 * parts - 1) * len(samples)  # that both ways give together
        self._runs = 0
        self._given = [States(len(samples), room) for _ in range(parts)]
        self._gradients = States(len(samples), room)

    def forward(self) -> Iterator[int]:
        """All parts but the last; gives the number of each sample that has come through one."""
        for part in range(self.parts - 1):
            for index in range(len(self.samples)):
                with torch.no_grad():
                    state = self._run(part, index, self._given[part][index])
                self._given[part + 1].put(index, state)
                yield index
            self._given[part].leave()
            self.network.leave_part(part)

    def back(self, part: int) -> Iterator[int]:
        """One part, with its gradients; gives the number of each sample once they are complete."""
        for index in range(len(self.samples)):
            state = self._given[part].take(index)
            if state is not None:
                state.requires_grad_()
            out = self._run(part, index, state)
            last = part + 1 == self.parts
            gradient = self.at_head(index, out.detach()) if last else self._gradients.take(index)
            if out.requires_grad or self.parts == 1:  # nothing before the blocks may want a gradient
                torch.autograd.backward(out, gradient)
            if state is not None:
                self._gradients.put(index, state.grad)
            del state, out, gradient  # before the next sample's come
            yield index
        self.network.leave_part(part)

    def both_ways(self) -> Iterator[int]:
        """`forward`, then `back` through every part."""
        yield from self.forward()
        for part in reversed(range(self.parts)):
            yield from self.back(part)

    def _run(self, part: int, index: int, state: Tensor | None) -> Tensor:
        self._runs += 1
        if self._runs % GIVE_BACK == 0:
            give_back()
        return run_part(self.network, self.parts, part, self.samples[index], state)


def last_states(network: GradientNetwork, samples: Sequence[Sample], parts: int, room: Room) -> Iterator[Tensor]:
    """The last hidden states [1, T, H] of each sample, which go through the network part by part, without graphs."""
    states = States(len(samples), room)
    for part in range(parts):
        for index, sample in enumerate(samples):
            with torch.no_grad():
                out = run_part(network, parts, part, sample, states.take(index))
            if part + 1 < parts:
                states.put(index, out)
            else:
                yield out
        give_back()


def run_part(network: GradientNetwork, parts: int, part: int, sample: Sample, state: Tensor | None) -> Tensor:
    """One of so many parts on a sample; the state that it is given stays as it is."""
    if parts == 1:
        return network.states(sample)
    # a part may change its state in place
    return network.states_part(part, sample, None if state is None else state.clone())
