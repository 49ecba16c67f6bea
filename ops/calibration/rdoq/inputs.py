"""What the inputs of each linear cost the model, by Fisher estimate, and what the worst of them become."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from torch import Tensor

from slimrun.ops.calibration.base import GradientNetwork, Layer, Watcher
from slimrun.ops.calibration.ranges import InputRange
from slimrun.ops.calibration.states import Walk
from slimrun.ops.format.arithmetic import quantize_activation, token_scales
from slimrun.ops.format.linear import DynamicInt8Linear, WeightOnlyLinear
from slimrun.ops.quant.rdoq import DYNAMIC_INPUTS, FLOAT_INPUTS, Fallback

from .gradients import multiply

FORMATS = {DYNAMIC_INPUTS: DynamicInt8Linear.quant_type, FLOAT_INPUTS: WeightOnlyLinear.quant_type}

Error = Callable[[Tensor, InputRange], Tensor]  # of inputs [m, k], in the same shape


def grid_error(rows: Tensor, one: InputRange) -> Tensor:
    """What the linear's grid makes of its inputs."""
    grid = one.linear.grid
    return (quantize_activation(rows, grid).float() - grid.offset) * grid.scale - rows


def token_error(rows: Tensor, one: InputRange) -> Tensor:
    """What a step a token makes of them."""
    scales = token_scales(rows)
    return (rows / scales).round() * scales - rows


def input_losses(
    network: GradientNetwork,
    token_weights: Mapping[str, Tensor],
    walk: Walk,
    tokens: Sequence[int],
    ranges: Mapping[str, InputRange],
    error: Error = grid_error,
) -> dict[str, float]:
    """Nats by linear that these errors of inputs cost, over a walk of samples, each of so many tokens."""
    losses = dict.fromkeys(ranges, 0.0)
    begins = [0, *accumulate(tokens)]

    def measure(name: str, one: InputRange) -> Watcher:
        def watch(x: Tensor) -> None:
            rows = x.float().flatten(0, -2)
            values, steps = one.weight.values.to(x.device), one.weight.scale.to(x.device)  # which may lie elsewhere
            moved = multiply(error(rows, one), values) * steps.reshape(1, -1)
            known, begin, end = token_weights[name], begins[walk.sample], begins[walk.sample + 1]
            if len(rows) == end - begin and len(known) == begins[-1]:
                weights = known[begin:end]
            else:  # an expert, to which other tokens are routed now than when weights were measured
                weights = known.mean().expand(len(rows))
            losses[name] += float(moved.square().sum(dim=1).cpu() @ weights)

        return watch

    watchers = {name: measure(name, one) for name, one in ranges.items() if name in token_weights}
    with network.watching(watchers):
        for _ in walk:
            pass
    return losses


def leave_worst_inputs(
    network: GradientNetwork,
    ranges: Mapping[str, InputRange],
    layers: Mapping[str, Layer],
    first: Mapping[str, str],
    fallback: Fallback,
    losses: Callable[..., dict[str, float]],
) -> None:
    """Give other inputs to the linears that lose most on a grid; `losses` are those of ranges, with an error or none.

    Their layers tell what they lost and lose.
    """
    on_grids = losses(ranges)
    for name, loss in on_grids.items():
        layers[name].input_loss = layers[name].input_loss_left = loss

    def dynamic_losses(worst: list[str]) -> dict[str, float]:
        return losses({name: ranges[name] for name in worst}, token_error)

    for name, (inputs, left) in other_inputs(on_grids, first, fallback, dynamic_losses).items():
        layer = layers[name]
        layer.format, layer.input_loss_left = FORMATS[inputs], left
        layer.float_inputs, layer.note = inputs == FLOAT_INPUTS, ""
        network.replace(name, ranges[name].without_grid(layer.format))


def worst_groups(losses: Mapping[str, float], first: Mapping[str, str], count: int) -> tuple[list[list[str]], float]:
    """At most `count` linears that lose most, in whole groups of those that share an input (`first`: its first reader).

    Groups come by their loss a linear; one that is too large for what is left of the count is passed over. The second
    number is what a linear of the worst group loses that is none of them, infinity where all are.
    """
    groups: dict[str, list[str]] = {}
    for name in losses:
        groups.setdefault(first.get(name, name), []).append(name)
    worst: list[list[str]] = []
    stay = -math.inf
    for group in sorted(groups.values(), key=lambda group: -mean_loss(losses, group)):
        if sum(map(len, worst)) + len(group) <= count:
            worst.append(group)
        else:
            stay = max(stay, mean_loss(losses, group))
    return worst, stay if len(worst) < len(groups) else math.inf


def other_inputs(
    losses: Mapping[str, float],
    first: Mapping[str, str],
    fallback: Fallback,
    dynamic_losses: Callable[[list[str]], Mapping[str, float]],
) -> dict[str, tuple[str, float]]:
    """Linear that loses most on its grid -> the kind of inputs it takes instead, and what it loses then.

    Those that share an input take it alike: engines run them as one product, of one type and one grid.
    """
    groups, most = worst_groups(losses, first, int(fallback.max_share * len(losses)))
    worst = [name for group in groups for name in group]
    costs: dict[str, Mapping[str, float]] = {FLOAT_INPUTS: dict.fromkeys(worst, 0.0)}
    if DYNAMIC_INPUTS in fallback.inputs and worst:
        costs[DYNAMIC_INPUTS] = dynamic_losses(worst)
    kinds = {name: new_inputs(group, fallback.inputs, costs, most) for group in groups for name in group}
    return {name: (kind, costs[kind][name]) for name, kind in kinds.items()}


def new_inputs(
    group: Sequence[str], ladder: Sequence[str], costs: Mapping[str, Mapping[str, float]], most: float
) -> str:
    """The first kind of inputs on the ladder on which a linear of the group loses at most so much, or the last one."""
    return next((kind for kind in ladder if mean_loss(costs[kind], group) <= most), ladder[-1])


def mean_loss(losses: Mapping[str, float], group: Sequence[str]) -> float:
    """What a linear of the group loses."""
    return sum(losses[name] for name in group) / len(group)
