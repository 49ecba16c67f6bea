"""Samples on their way forward through a model, and the gradients of a loss on their way back, part by part of it.

Each part runs again when its gradients are due (Chen et al. 2016), so that one part's graph of one sample is all that
lies in memory beside what each part is given of each sample.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from slimrun.ops.calibration.base import GradientNetwork, Sample
from slimrun.ops.calibration.journal import Noted, Tensors
from slimrun.ops.calibration.states import States
from slimrun.ops.memory import Room, give_back

from .gradients import forget

log = logging.getLogger(__name__)

GRADIENT, FOUND = "gradient/", "found/"  # before the names of what is noted on the way back
GIVE_BACK = 12  # runs of a part between two returns of memory, after which it must be had anew


class GradientWalk:
    """A walk of samples through a network of so many parts: `forward`, then `back` through each from the last on.

    `at_head` makes of a sample's number and its last hidden states [1, T, H] the gradient there, and `room` has what
    parts are given. To be taken within `gradients` of the model. PassedBy where gradients would flow past the states
    between parts.

    A walk that is `noted` goes on where it was stopped: `left` says how many parts gradients have still to go back
    through, `done` how many steps are. What came of the others it has been given.
    """

    def __init__(
        self,
        network: GradientNetwork,
        samples: Sequence[Sample],
        parts: int,
        room: Room,
        at_head: Callable[[int, Tensor], Tensor],
        noted: Noted | None = None,
    ) -> None:
        self.network = network
        self.samples = samples
        self.parts = parts
        self.at_head = at_head
        self.steps = (2 * parts - 1) * len(samples)  # that both ways give together
        self.noted = noted
        self.left = parts
        self._runs = 0
        self._through = 0  # parts that all samples have come through
        self._notes_until = 0  # the part up to which what parts are given is noted
        self._given = [States(len(samples), room) for _ in range(parts)]
        self._gradients = States(len(samples), room)
        self._find()

    @property
    def done(self) -> int:
        """Steps that are behind."""
        return self.steps - (max(0, self.left - 1 - self._through) + self.left) * len(self.samples)

    def forward(self) -> Iterator[int]:
        """All parts but the last that is left; gives the number of each sample that has come through one."""
        for part in range(self._through, self.left - 1):
            for index in range(len(self.samples)):
                with torch.no_grad():
                    state = self._run(part, index, self._given[part][index])
                self._given[part + 1].put(index, state)
                yield index
            self._given[part].leave()
            self._leave(part)
            self._through = part + 1
            self._note_given()

    def back(self, part: int) -> Iterator[int]:
        """The last part that is left, with its gradients; gives the number of each sample once they are complete."""
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
        self._leave(part)
        self.left = part

    def both_ways(self) -> Iterator[int]:
        """`forward`, then `back` through every part."""
        yield from self.forward()
        while self.left:
            yield from self.back(self.left - 1)
            self.note()

    def note(self) -> None:
        """Note, where it is time, how far gradients have come back, and what came of it."""
        if self.noted is None or self.left == self.parts or not self.noted.journal.due:
            return
        gradients = self._gradients.noted() if self.left else {}
        if gradients is not None:
            found = _under(FOUND, self.noted.take())
            state = {**_under(GRADIENT, gradients), **found, "left": torch.tensor(self.left)}
            self.noted.journal.keep_state(self.noted.kind, state)

    def _note_given(self) -> None:
        """Note, where it is time, what parts are given; it then lies in the journal's file."""
        if self.noted is None or not self.noted.journal.due:
            return
        given: Tensors = {}
        for part in range(self._notes_until + 1, self._through + 1):
            states = self._given[part].noted()
            if states is None:
                return
            given |= _under(f"{part}/", states)
        span = torch.tensor([self._notes_until, self._through])
        self._find_given(self.noted.journal.add(self.noted.kind, {**given, "parts": span}))

    def _find_given(self, note: Tensors) -> None:
        after, until = note.pop("parts").tolist()
        for part in range(after + 1, until + 1):
            self._given[part].find(_below(f"{part}/", note))
        self._notes_until = until

    def _find(self) -> None:
        """Go on from what is noted."""
        if self.noted is None:
            return
        for note in self.noted.journal.notes(self.noted.kind):
            self._find_given(note)
        self._through = self._notes_until
        state = self.noted.journal.state(self.noted.kind)
        if state:
            self.left = int(state["left"])
            self._gradients.find(_below(GRADIENT, state))
            self.noted.give(_below(FOUND, state))
        if self.done:
            way = f"back at part {self.left}" if state else f"after part {self._through}"
            log.info("%s: goes on %s of %d, where it was stopped", self.noted.kind, way, self.parts)

    def _leave(self, part: int) -> None:
        self.network.leave_part(part)
        forget(self.network.model)

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


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
