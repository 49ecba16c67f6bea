"""Scales of a linear's inputs that the model before it can take: norms, and linears whose rows make the inputs.

Dividing the inputs of a linear by a scale and multiplying its columns with it changes nothing, if what makes the
inputs is divided: the weight of a norm, or rows of another linear with nothing but products and sums between. Such are
value -> output of attention (query heads that share a key head share the scale), up -> down of a gated MLP, or either
linear of one with ReLU. Which of them a model has, the network tries out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slimrun.ops.calibration.base import GradientNetwork, Progress, silent
from slimrun.ops.calibration.journal import Journal, Results, Tensors
from slimrun.ops.calibration.wiring import (
    NOT_REACHED,
    OTHER_FUNCTION,
    Fold,
    Observations,
    divided,
    folds_of_norm,
    others_may_read,
)
from slimrun.ops.memory import Room, release
from slimrun.ops.quant.feedback import TENSOR_BALANCE, column_costs
from slimrun.ops.quant.rdoq import GAUSSIAN_NOISE, RDOQ, WATERFILLED
from slimrun.ops.quant.smooth import smoothing_scale

from .statistics import Statistics

FLOAT_READER = "a linear that stays float reads it too"
HEADS = ("head_dim", "v_head_dim", "kv_channels", "attention_head_size")  # what models call the width of a head


def find_folds(
    network: GradientNetwork, run: Callable[[], Any], selected: Collection[str] | None = None
) -> tuple[list[Fold], dict[str, str]]:
    """Every fold into `selected` linears (None: all) that leaves what the model computes; places without one, and why.

    `run` runs the model on a few tokens. A place is a norm, or the last linear that a module runs.
    """
    seen = Observations(1)
    with network.observing(seen):
        run()
    model, shapes = network.model, network.linears()
    wanted = set(shapes if selected is None else selected)
    of_norms = {name: norm.readers for name, norm in seen.norms.items() if norm.readers}
    candidates = {
        name: folds_of_norm(name, readers, len(network.affine(name)[0])) for name, readers in of_norms.items()
    }
    known = {reader for readers in of_norms.values() for reader in readers}
    between = _between_linears(model, list(seen.reached), shapes)
    candidates |= {place: folds for place, folds in between.items() if place not in known}
    candidates = {place: folds for place, folds in candidates.items() if wanted.intersection(folds[0].readers)}
    without: dict[str, str] = {}
    for place, (first, *_) in candidates.items():
        if not wanted.issuperset(first.readers):
            without[place] = FLOAT_READER
        elif others_may_read(shapes, (first.producer, *first.readers), seen.reached):
            without[place] = NOT_REACHED
    tried = {place: folds for place, folds in candidates.items() if place not in without}
    holding = dict(zip(tried, network.folds_that_hold(list(tried.values()), run)))
    without |= {place: OTHER_FUNCTION for place, fold in holding.items() if fold is None}
    return [fold for fold in holding.values() if fold is not None], without


@torch.no_grad()
def smooth_inputs(
    network: GradientNetwork,
    folds: Sequence[Fold],
    statistics: Statistics,
    quantizer: RDOQ,
    progress: Progress = silent,
    journal: Journal | None = None,
) -> None:
    """Smooth the inputs of all folds, in the model and in its statistics; scales that the journal has are taken."""
    rows = statistics.rows
    for name in statistics.first:
        with suppress(KeyError):
            rows[name] = statistics[f"{name}.rows"].clone()
    scales: list[tuple[Fold, Tensor]] = []
    results, reached = Results(journal or Journal(), "scales"), [one for one in folds if rows.keys() >= {*one.readers}]
    for done, one in enumerate(reached):
        found = results.get(one.readers[0], partial(_scale, network, one, statistics, quantizer))
        release(network.affine(name)[0] for name in one.readers)  # all are read before the first is folded
        scale = storable(network, one, found["scale"])
        progress(done + 1, 2 * len(reached), "smoothing")
        scales.append((one, scale))
        statistics.scales[statistics.first[one.readers[0]]] = scale
        if one.producer in rows:  # its outputs are divided, so their gradients grow
            rows[one.producer] *= one.by_row(scale.square(), len(rows[one.producer]))
    for done, (one, scale) in enumerate(scales):
        fold(network, one, scale, statistics.room)
        progress(len(scales) + done + 1, 2 * len(scales), "smoothing")


def storable(network: GradientNetwork, one: Fold, scale: Tensor) -> Tensor:
    """The scale [k] as the producer's weight can be stored."""
    if not one.offset:
        return scale
    weight = network.affine(one.producer)[0]
    return divided(weight, scale.to(weight.device), one.offset)[1].to(scale)


@torch.no_grad()
def fold(network: GradientNetwork, one: Fold, scale: Tensor, room: Room) -> None:
    """Divide the inputs of a fold by its scale [k]; the room has the weights that change."""
    producer: Any = network.model.get_submodule(one.producer)
    by_row = one.by_row(scale, producer.weight.shape[0])
    network.own(producer.weight, room)
    if one.offset:
        producer.weight.copy_(divided(producer.weight, by_row.to(producer.weight.device), one.offset)[0])
    else:
        producer.weight.div_(by_row.reshape(-1, *[1] * (producer.weight.ndim - 1)).to(producer.weight))
    if getattr(producer, "bias", None) is not None:
        producer.bias.div_(by_row.to(producer.bias))
    for reader in one.readers:
        weight = network.affine(reader)[0]
        network.own(weight, room)
        weight.mul_(scale.to(weight))
        room.release([weight])
    room.release([producer.weight])


def _scale(network: GradientNetwork, one: Fold, statistics: Statistics, quantizer: RDOQ) -> Tensors:
    """`scale`: what to divide the inputs [k] of a fold by.

    Where a norm takes the scale, all that is known decides; where rows of a linear do, the reach of inputs that few
    tokens make large, and so it does for a grid whose steps follow the largest weights.
    """
    first = statistics.first[one.readers[0]]
    if quantizer.columns == WATERFILLED:
        return {"scale": waterfilled_scale(one.per_producer(column_costs(statistics.moment(first), quantizer.damping)))}
    weights = [network.affine(name)[0].float().cpu() for name in one.readers]
    reach = one.per_producer(statistics[f"{first}.reach"])
    if isinstance(network.model.get_submodule(one.producer), nn.Linear) or quantizer.grid is not None:
        weight_reach = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
        assert quantizer.smooth_alpha is not None
        return {"scale": centred_scale(reach, one.per_producer(weight_reach), quantizer.smooth_alpha)}
    columns = column_costs(statistics.moment(first), quantizer.damping)
    noise, sensitivity = 0.0, torch.zeros_like(reach)
    for name, weight in zip(one.readers, weights):
        rows, bits = statistics.rows[name], quantizer.expected_bits((weight.shape[0], weight.shape[1]))
        noise += float(rows @ weight.var(dim=1, correction=0)) * GAUSSIAN_NOISE * 4.0**-bits
        if quantizer.activations != "float":
            sensitivity += rows @ weight.square()
    return {"scale": balanced_scale(reach, columns, sensitivity, noise)}


def centred_scale(reach: Tensor, weight_reach: Tensor, alpha: float) -> Tensor:
    """`smoothing_scale` [k] to divide the inputs by and multiply the columns with, mean log 0."""
    scale = smoothing_scale(reach.clamp_min(1e-6), weight_reach.clamp_min(1e-6), alpha)
    return scale / scale.log().mean().exp()


def waterfilled_scale(columns: Tensor) -> Tensor:
    """[k] to divide the inputs by and multiply the columns with, so that errors cost the same in all; mean log 0.

    columns as of `Importance`. Source: WaterSIC (Lifar et al. 2026), which stores a step a column where nothing takes
    the scale; its weights of attention, compensation of earlier errors and shrinkage (1 % at 3.5 bits) are not here.
    """
    scale = columns.clamp_min(1e-30).log() / 2
    return (scale - scale.mean()).exp()


def balanced_scale(reach: Tensor, columns: Tensor, sensitivity: Tensor, weight_noise: float) -> Tensor:
    """[k] to divide the inputs by and multiply the columns with, where rounding and input grid cost least; mean log 0.

    reach is max|x| of each input, columns (as of `Importance`) what a squared error of a column's weights costs,
    sensitivity what one of an input does, weight_noise the squared error of a column's weights at equal bits, times
    the importance of its rows. Weights alone want columns^(1/4), the importance being tempered as between tensors;
    inputs that would then reach farther than pays are divided by more.
    """
    tempered = columns.clamp_min(1e-30).pow(TENSOR_BALANCE)
    wanted = tempered.log() / 2
    limit = reach.clamp_min(1e-6).log()
    tempered = tempered * (columns.mean() / tempered.mean())
    costs, scales = [], []
    for share in torch.linspace(0, 1, 33):
        excess = (limit - wanted).quantile(float(share))  # from dividing all inputs by their reach to none
        scale = torch.maximum(wanted, limit - excess)
        scale = scale - scale.mean()
        step = 2 * float((limit - scale).max().exp()) / 255
        inputs = step**2 / 12 * float((sensitivity * (2 * scale).exp()).sum())
        costs.append(weight_noise * float((tempered * (-2 * scale).exp()).sum()) + inputs)
        scales.append(scale)
    return scales[costs.index(min(costs))].exp()


def _between_linears(
    model: nn.Module, reached: Sequence[str], shapes: dict[str, tuple[int, int]]
) -> dict[str, list[Fold]]:
    """The last linear that each module runs -> folds that its other linears could take, the last of them first."""
    called: dict[str, list[str]] = {}
    for name in reached:
        called.setdefault(name.rpartition(".")[0], []).append(name)
    candidates = {}
    for owner, module in model.named_modules():
        *makers, reader = called.get(owner) or [""]
        width = shapes[reader][1] if makers else 0
        folds = [
            Fold((reader,), maker, of)
            for maker in reversed(makers)
            for of in _layouts(shapes[maker][0], width, _heads(module, model))
        ]
        if folds:
            candidates[reader] = folds
    return candidates


def _layouts(rows: int, width: int, heads: Sequence[int]) -> Iterator[Tensor]:
    """Which of a linear's rows may make each of the inputs [width] of another, in all orders that models have."""
    if rows == width:
        yield torch.arange(width)
    if rows == 2 * width:  # gate and up, up and gate
        yield torch.arange(width, rows)
        yield torch.arange(width)
    for head in heads:
        if width % head or rows % head:
            continue
        queries, fused = width // head, max(0, rows - width) // (2 * head)  # heads of values beside queries and keys
        if fused and rows == width + 2 * fused * head and queries % fused == 0:
            yield _values(torch.arange(rows - fused * head, rows), head, queries)  # all queries, all keys, all values
        # values alone; groups of queries, a key and a value; heads of a key and a value
        for groups in dict.fromkeys((rows // head, fused, queries)):
            if groups and rows % groups == 0 and rows // groups >= head and queries % groups == 0:
                yield _values(torch.arange(rows).reshape(groups, -1)[:, -head:], head, queries)


def _values(rows: Tensor, head: int, queries: int) -> Tensor:
    """Rows of values [groups * head], query heads in a row sharing a head of them, for each of the inputs."""
    rows = rows.reshape(-1, 1, head)
    return rows.expand(-1, queries // len(rows), head).reshape(-1)


def _heads(module: nn.Module, model: Any) -> list[int]:
    """Widths that the heads of this module may have."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    widths = [getattr(owner, key, None) for owner in (module, config) for key in HEADS]
    count = getattr(config, "num_attention_heads", None)
    if isinstance(count, int) and count:
        widths.append(getattr(config, "hidden_size", 0) // count)
    return list(dict.fromkeys(head for head in widths if isinstance(head, int) and head > 0))
