"""What the rounding of each linear costs the model, measured on the rounded model.

The loss is near quadratic in the errors of the weights, so half its derivative along the errors of one linear is that
linear's share, and the shares add up to the loss (Euler's theorem on homogeneous functions). What errors in different
linears do together is in it, which an estimate linear by linear, at the float model, cannot know.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slimrun.ops.calibration.base import GradientNetwork, Progress
from slimrun.ops.calibration.journal import Journal, Noted, Tensors
from slimrun.ops.format.arithmetic import QuantizedWeight
from slimrun.ops.memory import Room

from .gradients import RoundedLinear, gradients, multiply_kept
from .head import Teacher, divergence_walk

SHARES = "shares"  # the kind of notes in the journal
CORRECTION = 4.0  # at most, either way, of what a linear's errors are estimated to cost


class AttributedLinear(RoundedLinear):
    """Rounded weights, and the errors they bring to the outputs, times a factor whose gradient is watched."""

    def __init__(self, weight: QuantizedWeight, exact: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight)
        self.exact = exact  # shared with the float linear
        self.bias = bias
        self.more = nn.Parameter(torch.zeros((), device=exact.device))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        out = self.product(x)
        error = out.detach() - multiply_kept(x.detach(), self, "exact")
        out = out + error * self.more.to(x.dtype)
        return out if self.bias is None else out + self.bias


def measured_shares(
    network: GradientNetwork,
    linears: Mapping[str, AttributedLinear],
    teacher: Teacher,
    parts: int,
    room: Room,
    progress: Progress,
    journal: Journal | None = None,
) -> dict[str, float]:
    """KL(float || rounded) in nats a token by linear, the mean over samples; arguments as of `tuning.tuned`.

    The linears stand in the network meanwhile. A share is below zero where the errors of others make up for those of a
    linear.
    """

    def take() -> Tensors:
        return {name: linear.more.grad for name, linear in linears.items() if linear.more.grad is not None}

    def give(found: Tensors) -> None:
        for name, slope in found.items():
            linears[name].more.grad = slope.to(linears[name].more.device, copy=True)

    exact: dict[str, nn.Module] = {name: network.model.get_submodule(name) for name in linears}
    for name, linear in linears.items():
        network.replace(name, linear)
    walk = divergence_walk(network, teacher, parts, room, Noted(journal or Journal(), SHARES, take, give))
    with gradients(network.model, [linear.more for linear in linears.values()], again=parts == 1):
        for done, _ in enumerate(walk.both_ways(), start=walk.done + 1):
            progress(done, walk.steps, "losses")
    for name, module in exact.items():
        network.replace(name, module)
    slopes = {name: 0.0 if linear.more.grad is None else float(linear.more.grad) for name, linear in linears.items()}
    return {name: slope / 2 / len(teacher.samples) for name, slope in slopes.items()}


def corrections(losses: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """What to multiply slopes with so that all linears come to lose the same a weight, given what they lose now.

    Where a bit halves the step and quarters the loss, no bit could then be spent better elsewhere. The losses are
    measured on few prompts, so no correction is larger than CORRECTION; there is none if the model loses nothing.
    """
    mean = sum(losses.values()) / max(1, sum(counts.values()))
    if not mean > 0:
        return {}
    return {name: min(CORRECTION, max(1 / CORRECTION, loss / counts[name] / mean)) for name, loss in losses.items()}
