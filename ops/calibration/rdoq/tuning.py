"""Row steps of a quantized model, tuned so that it predicts what the float model predicts.

The integers stay as they are, so neither size nor format changes. Source: distillation of step sizes alone is the
last phase of EfficientQAT (Chen et al. 2024), here with Kullback-Leibler divergence as the loss.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slimrun.ops.calibration.base import GradientNetwork, Progress
from slimrun.ops.calibration.journal import Journal, Tensors
from slimrun.ops.format.arithmetic import QuantizedWeight
from slimrun.ops.memory import Room

from .gradients import RoundedLinear, gradients
from .head import Teacher, divergence_walk

log = logging.getLogger(__name__)

TUNED = "tuned"  # the kind of state in the journal
BETAS = (0.9, 0.95)  # few steps are taken: their memory must be short


class TunedLinear(RoundedLinear):
    """Rounded weights, and a factor for each row, e^`change`, that learns."""

    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__(weight)
        self.register_buffer("bias", bias)
        self.change = nn.Parameter(torch.zeros(weight.values.shape[0], device=weight.values.device))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        out = self.product(x, self.change.exp())
        return out if self.bias is None else out + self.bias


def tuned(
    network: GradientNetwork,
    linears: Mapping[str, TunedLinear],
    teacher: Teacher,
    rate: float,
    parts: int,
    room: Room,
    progress: Progress,
    journal: Journal,
) -> dict[str, Tensor]:
    """Factor [n, 1] of the rows of each linear after one step of Adam a sample, at a rate that falls as a cosine.

    The linears stand in the network already, through which gradients are carried in so many parts. The journal has the
    last step.
    """
    changes = [linear.change for linear in linears.values()]
    optimizer = torch.optim.Adam(changes, lr=rate, betas=BETAS)
    steps, done_steps = len(teacher.samples), _gone_on(optimizer, linears, journal)
    with gradients(network.model, changes, again=parts == 1):
        for step in range(done_steps, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            walk = divergence_walk(network, teacher.of([step]), parts, room)
            for done, _ in enumerate(walk.both_ways()):
                progress(step * walk.steps + done + 1, steps * walk.steps, "steps")
            optimizer.step()
            if journal.due or (step + 1 == steps and journal.begun):
                journal.keep_state(TUNED, {**_state(optimizer, linears), "steps": torch.tensor(step + 1)})
    return {name: linear.change.detach().exp().unsqueeze(1) for name, linear in linears.items()}


def _state(optimizer: torch.optim.Adam, linears: Mapping[str, TunedLinear]) -> Tensors:
    """What has been learned of each linear, and Adam's memory of it."""
    state: Tensors = {}
    for name, linear in linears.items():
        state |= {f"{name}/{key}": tensor for key, tensor in optimizer.state.get(linear.change, {}).items()}
        state[f"{name}/change"] = linear.change
    return state


def _gone_on(optimizer: torch.optim.Adam, linears: Mapping[str, TunedLinear], journal: Journal) -> int:
    """Take what the journal has of `_state`; returns how many steps are done."""
    state = journal.state(TUNED)
    if not state:
        return 0
    steps = int(state.pop("steps"))
    log.info("%s: goes on after %d samples, where it was stopped", TUNED, steps)
    for key, tensor in state.items():
        name, _, part = key.rpartition("/")
        change = linears[name].change
        if part == "change":
            change.data.copy_(tensor)
        else:
            optimizer.state[change][part] = tensor.clone()  # a mapped file is not to change
    return steps
