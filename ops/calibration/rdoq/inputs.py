"""What the input grid of each linear costs the model, by Fisher estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from torch import Tensor

from slimrun.ops.calibration.base import GradientNetwork, Watcher
from slimrun.ops.calibration.ranges import InputRange
from slimrun.ops.calibration.states import Walk
from slimrun.ops.format.arithmetic import quantize_activation

from .gradients import multiply


def input_losses(
    network: GradientNetwork,
    ranges: Mapping[str, InputRange],
    token_weights: Mapping[str, Tensor],
    walk: Walk,
    tokens: Sequence[int],
) -> dict[str, float]:
    """Nats by linear that the grids of these inputs cost, over a walk of samples, each of so many tokens."""
    losses = dict.fromkeys(ranges, 0.0)
    begins = [0, *accumulate(tokens)]

    def measure(name: str, one: InputRange) -> Watcher:
        grid, steps = one.linear.grid, one.weight.scale

        def watch(x: Tensor) -> None:
            rows = x.float().flatten(0, -2)
            error = (quantize_activation(rows, grid).float() - grid.offset) * grid.scale - rows
            moved = multiply(error, one.weight.values) * steps.reshape(1, -1)
            begin = begins[walk.sample]
            losses[name] += float(moved.square().sum(dim=1).cpu() @ token_weights[name][begin : begin + len(rows)])

        return watch

    watchers = {name: measure(name, one) for name, one in ranges.items() if name in token_weights}
    with network.watching(watchers):
        for _ in walk:
            pass
    return losses


def worst_inputs(losses: Mapping[str, float], first: Mapping[str, str], count: int) -> list[str]:
    """At most `count` linears that lose most, in whole groups of those that share an input (`first`: its first reader).

    Groups come by their loss a linear; one that is too large for what is left of the count is passed over.
    """
    groups: dict[str, list[str]] = {}
    for name in losses:
        groups.setdefault(first.get(name, name), []).append(name)
    worst: list[str] = []
    for group in sorted(groups.values(), key=lambda group: -sum(losses[name] for name in group) / len(group)):
        if len(worst) + len(group) <= count:
            worst += group
    return worst
