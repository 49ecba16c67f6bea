"""Samples on their way through a model: all of them through one part of it, then all through the next.

A linear sees the samples in the same order as if one after the other went through the whole model, so that what is
calibrated is the same; but only one part has to be at hand, and between parts a sample is no more than its state.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from slimrun.ops.errors import first_line
from slimrun.ops.memory import Room, give_back

from .base import Network, Sample
from .journal import Noted

log = logging.getLogger(__name__)


class States:
    """What samples have come to between two parts; torch tensors lie where the room has place."""

    def __init__(self, count: int, room: Room) -> None:
        self._states: list[Any] = [None] * count
        self._room = room

    def __getitem__(self, index: int) -> Any:
        """The state of a sample."""
        return self._states[index]

    def take(self, index: int) -> Any:
        """The state of a sample, which is forgotten here."""
        state, self._states[index] = self._states[index], None
        return state

    def put(self, index: int, state: Any) -> None:
        """Keep the state of a sample."""
        self._states[index] = self._room.keep(state) if isinstance(state, Tensor) else state

    def noted(self) -> dict[str, Tensor] | None:
        """The states by number, for a journal; None where they are no torch tensors."""
        if not all(isinstance(state, Tensor) for state in self._states):
            return None
        return {str(index): state for index, state in enumerate(self._states)}

    def find(self, noted: Mapping[str, Tensor]) -> None:
        """Take states from where a journal has them."""
        for index, state in noted.items():
            self._states[int(index)] = state

    def leave(self) -> None:
        """The states are not needed now: those in files leave memory."""
        self._room.release(state for state in self._states if isinstance(state, Tensor))


class Walk:
    """A walk of the samples through a network of so many parts; iterating takes the steps and says (done, total).

    `sample` is the number of the one that is under way. ValueError says which sample fails. A walk that is `noted`
    goes on behind the last part that is. Where all linears that are `watched` are in blocks it ends with the last of
    these: the output layer of a small model is much of it.
    """

    def __init__(
        self,
        network: Network,
        samples: Sequence[Sample],
        parts: int,
        noted: Noted | None = None,
        watched: Collection[str] = (),
    ) -> None:
        self.network = network
        self.samples = samples
        self.parts = parts
        self.noted = noted
        self.watched = watched
        self.sample = 0
        self._noted_parts = 0  # how many of them the journal has

    def __iter__(self) -> Iterator[tuple[int, int]]:
        count = len(self.samples)
        states = States(count, self.network.room)
        alone = bool(self.watched) and self.network.in_blocks(self.watched)
        for part in range(self._behind(states), self.parts):
            for index, sample in enumerate(self.samples):
                self.sample = index
                with failing(index, sample):
                    out = self.network.run_part(part, sample, states.take(index), blocks_alone=alone)
                if part + 1 < self.parts:
                    states.put(index, out)
                del out
                if self.parts == 1:  # all of the model has run, and left as much behind
                    give_back()
                yield part * count + index + 1, self.parts * count
            give_back()
            self._note(part + 1, states)

    def _behind(self, states: States) -> int:
        """How many parts are noted, whose results and last states are as they were then."""
        if self.noted is None:
            return 0
        journal, kind = self.noted.journal, self.noted.kind
        last = journal.state(kind)
        parts = int(last.pop("parts", torch.tensor(0)))
        noted, notes = 0, []
        for note in journal.notes(kind):
            after, until = note.pop("parts").tolist()
            if after <= noted and until <= parts:
                noted = until
                notes.append(note)
        if noted < parts:  # a note is damaged
            return 0
        for note in notes:
            self.noted.give(note)
        states.find(last)
        if parts:
            log.info("%s: goes on after part %d of %d, where it was stopped", kind, parts, self.parts)
        self._noted_parts = parts
        return parts

    def _note(self, parts: int, states: States) -> None:
        """Note what the parts so far gave: where it is time, and at the end of a walk that has notes."""
        if self.noted is None:
            return
        journal, kind = self.noted.journal, self.noted.kind
        last = states.noted() if parts < self.parts else {}
        if last is not None and (journal.due or (parts == self.parts and journal.state(kind))):
            journal.add(kind, {**self.noted.take(), "parts": torch.tensor([self._noted_parts, parts])})
            journal.keep_state(kind, {**last, "parts": torch.tensor(parts)})
            self._noted_parts = parts

    def run_first(self) -> Any:
        """The whole network on the first sample."""
        with failing(0, self.samples[0]):
            return self.network.run(self.samples[0])


@contextmanager
def failing(index: int, sample: Sample) -> Iterator[None]:
    """What a model says of a sample that does not fit becomes one line that names the sample."""
    try:
        yield
    except (RuntimeError, TypeError, IndexError, ValueError, AttributeError) as error:
        if "out of memory" in str(error).lower():
            raise
        call = "model(**sample)" if isinstance(sample, Mapping) else "model(*sample)"
        raise ValueError(f"calibration sample {index}: {call} fails: {first_line(error)}") from error
