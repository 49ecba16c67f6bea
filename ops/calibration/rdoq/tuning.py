"""Row steps of a quantized model, tuned so that it predicts what the float model predicts.

The integers stay as they are, so neither size nor format changes. Source: distillation of step sizes alone is the
last phase of EfficientQAT (Chen et al. 2024), here with Kullback-Leibler divergence as the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from slimrun.ops.calibration.base import GradientNetwork, Progress, Sample
from slimrun.ops.format.arithmetic import QuantizedWeight

from .fisher import head_gradient
from .gradients import RoundedLinear, gradients

Heads = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]  # hidden states -> logits: quantized, float

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


def tuned_steps(
    linears: Mapping[str, TunedLinear],
    samples: Sequence[Callable[[], Tensor]],
    targets: Sequence[Tensor],
    heads: Heads,
    rate: float,
    progress: Progress,
) -> dict[str, Tensor]:
    """Factor [n, 1] of the rows of each linear after one step of Adam a sample, at a rate that falls as a cosine.

    A sample gives the last hidden states [1, T, H] of the model that these linears are in, `targets` are those [T, H]
    of the float model, and `heads` make logits of the ones and of the others. To be called within `gradients` of that
    model, for the factors.
    """
    changes = [linear.change for linear in linears.values()]
    optimizer = torch.optim.Adam(changes, lr=rate, betas=BETAS)
    for step, (sample, target) in enumerate(zip(samples, targets, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / len(samples)))
        optimizer.zero_grad()
        states = sample()
        gradient = head_gradient(states, heads[0], partial(divergence, heads[1], target.to(states)))
        torch.autograd.backward(states, gradient / len(target))
        optimizer.step()
        progress(step + 1, len(samples))
    return {name: linear.change.detach().exp().unsqueeze(1) for name, linear in linears.items()}


def tuned(
    network: GradientNetwork,
    linears: Mapping[str, TunedLinear],
    samples: Sequence[Sample],
    targets: Sequence[Tensor],
    float_head: nn.Module,
    rate: float,
    progress: Progress,
) -> dict[str, Tensor]:
    """`tuned_steps` of these linears, which stand in the network already."""
    runs = [partial(network.states, sample) for sample in samples]
    with gradients(network.model, [linear.change for linear in linears.values()]):
        return tuned_steps(linears, runs, targets, (network.head(), float_head), rate, progress)


def divergence(head: Callable[[Tensor], Tensor], target: Tensor, logits: Tensor, where: slice) -> Tensor:
    """Gradient at logits [t, V] of KL(float || quantized), summed over the tokens `where`.

    The float model's last hidden states are `target` [T, H], and `head` makes logits of them.
    """
    expected = head(target[where]).float().softmax(dim=-1)
    return logits.softmax(dim=-1).sub_(expected)
