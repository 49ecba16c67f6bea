"""The loss of a quantized model, measured on samples that nothing was measured on before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from slimrun.ops.calibration.base import GradientNetwork, Sample
from slimrun.ops.memory import Room
from slimrun.ops.quant.rdoq import RDOQ

from .gradient_walk import last_states
from .head import Teacher, divergence

SHARE = 4  # one sample in so many is held out, where the loss is the target


def count_held_out(quantizer: RDOQ, samples: int) -> int:
    """How many of the samples, the last of them, are held out; ValueError when there are too few."""
    if quantizer.target_kl is None:
        return 0
    if samples < 2:
        raise ValueError(
            f"target_kl={quantizer.target_kl} is measured on prompts held out: 2 or more are needed, not {samples}"
        )
    return max(1, samples // SHARE)


class HeldOut:
    """Samples held out, and what the network says of them while it is float still; so many parts, a room for states."""

    def __init__(self, network: GradientNetwork, samples: Sequence[Sample], parts: int, room: Room) -> None:
        self._states = partial(last_states, network, samples, parts, room)
        self._network = network
        self._teacher = Teacher(samples, [room.keep(states) for states in self._states()], network.head())

    def loss(self) -> float:
        """KL(float || quantized) in nats a token."""
        lost, tokens = 0.0, 0
        for known, states in zip(self._teacher.states, self._states(), strict=True):
            expected, reached = known.flatten(0, -2), states.flatten(0, -2)
            lost += divergence(self._teacher.head, expected, self._network.head(), reached, chunk=len(reached))
            tokens += len(reached)
        return lost / tokens
