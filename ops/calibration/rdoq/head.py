"""Gradients of a loss at the last hidden states, by way of the output layer: logits of a few tokens exist at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from slimrun.ops.calibration.base import GradientNetwork, Sample
from slimrun.ops.calibration.journal import Noted
from slimrun.ops.memory import Room, give_back

from .gradient_walk import GradientWalk

CHUNK = 64  # tokens whose logits exist at once


@dataclass(frozen=True)
class Teacher:
    """What the float model says of samples: `head` makes its logits of its last hidden states [T, H]."""

    samples: Sequence[Sample]
    states: Sequence[Tensor]
    head: nn.Module

    def of(self, numbers: Iterable[int]) -> Teacher:
        """A teacher of the samples with these numbers alone."""
        chosen = list(numbers)
        return Teacher([self.samples[one] for one in chosen], [self.states[one] for one in chosen], self.head)


def teacher(
    network: GradientNetwork, samples: Sequence[Sample], states: Sequence[Tensor], changed: Iterable[str]
) -> Teacher:
    """The float network as a teacher of these samples; its head is copied where it is among the linears `changed`."""
    head = network.head()
    own = any(network.model.get_submodule(name) is head for name in changed)
    return Teacher(samples, states, deepcopy(head) if own else head)


def head_gradient(
    states: Tensor, head: Callable[[Tensor], Tensor], slope: Callable[[Tensor, slice], Tensor], chunk: int = CHUNK
) -> Tensor:
    """Gradient of a loss at states [..., T, H], of which `head` makes logits.

    `slope` gives the gradient at the logits of some tokens, float32 [t, V], and is told which they are.
    """
    give_back()  # what the blocks have freed, and below what is freed here
    rows = states.detach().flatten(0, -2)
    gradients = []
    for start in range(0, len(rows), chunk):
        where = slice(start, start + chunk)
        part = rows[where].requires_grad_()
        logits = head(part)
        with torch.no_grad():
            gradient = slope(logits.detach().float(), where).to(logits)
        gradients.append(torch.autograd.grad(logits, part, gradient)[0])
    give_back()
    return torch.cat(gradients).reshape(states.shape)


def surprise(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Gradient at logits [t, V] of -log p(label), the label of each token drawn from p = softmax(logits)."""
    shares = logits.softmax(dim=-1)
    cumulated = shares.cumsum(dim=-1)
    drawn = torch.rand(len(logits), 1, generator=generator).to(cumulated) * cumulated[:, -1:]
    labels = torch.searchsorted(cumulated, drawn).clamp_max(logits.shape[1] - 1)
    return shares.scatter_add_(1, labels, -torch.ones_like(drawn))


def divergence(float_head: nn.Module, expected: Tensor, head: nn.Module, states: Tensor, chunk: int = CHUNK) -> float:
    """KL(float || quantized) in nats, summed over tokens, of last hidden states [T, H] of both models."""
    lost = 0.0
    for target, part in zip(torch.split(expected, chunk), torch.split(states, chunk)):
        said = float_head(target).float().log_softmax(dim=-1)
        lost += float((said.exp() * (said - head(part).float().log_softmax(dim=-1))).sum())
    return lost


def divergence_gradient(head: Callable[[Tensor], Tensor], target: Tensor, logits: Tensor, where: slice) -> Tensor:
    """Gradient at logits [t, V] of KL(float || quantized), summed over the tokens `where`.

    The float model's last hidden states are `target` [T, H], and `head` makes logits of them.
    """
    expected = head(target[where]).float().softmax(dim=-1)
    return logits.softmax(dim=-1).sub_(expected)


def divergence_walk(
    network: GradientNetwork, teacher: Teacher, parts: int, room: Room, noted: Noted | None = None
) -> GradientWalk:
    """A walk whose loss is KL(float || quantized), the mean over the tokens of each sample, summed over samples."""
    head = network.head()

    def at_head(index: int, states: Tensor) -> Tensor:
        target = teacher.states[index]
        return head_gradient(states, head, partial(divergence_gradient, teacher.head, target.to(states))) / len(target)

    return GradientWalk(network, teacher.samples, parts, room, at_head, noted)
