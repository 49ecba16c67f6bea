"""Samples on their way through a model: all of them through one part of it, then all through the next.

A linear sees the samples in the same order as if one after the other went through the whole model, so that what is
calibrated is the same; but only one part has to be at hand, and between parts a sample is no more than its state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from slimrun.ops.errors import first_line
from slimrun.ops.memory import Room, give_back

from .base import Network, Sample


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

    def leave(self) -> None:
        """The states are not needed now: those in files leave memory."""
        self._room.release(state for state in self._states if isinstance(state, Tensor))


class Walk:
    """A walk of the samples through a network of so many parts; iterating takes the steps and says (done, total).

    `sample` is the number of the one that is under way. ValueError says which sample fails.
    """

    def __init__(self, network: Network, samples: Sequence[Sample], parts: int) -> None:
        self.network = network
        self.samples = samples
        self.parts = parts
        self.sample = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        count = len(self.samples)
        states = States(count, self.network.room)
        for part in range(self.parts):
            for index, sample in enumerate(self.samples):
                self.sample = index
                with failing(index, sample):
                    out = self.network.run_part(part, sample, states.take(index))
                if part + 1 < self.parts:
                    states.put(index, out)
                del out
                if self.parts == 1:  # all of the model has run, and left as much behind
                    give_back()
                yield part * count + index + 1, self.parts * count
            give_back()

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
