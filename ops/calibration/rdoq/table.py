"""What errors in embeddings and output head cost, in the units of linears, so that one slope serves the whole file.

A row of the head costs what its logit's gradient says, p (1 - p) in expectation (no label is drawn for it). A row of
the embeddings costs what the gradients say that come back to its token, as often as the token comes. Of most tokens
none is seen among some ten thousand: how often they come is, for half of it, what the model itself expects on average.
Where embeddings are tied, one table costs both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrun.ops.calibration.base import GradientNetwork, Layer, Sample
from slimrun.ops.calibration.tables import float_tables, note_table
from slimrun.ops.format.arithmetic import QuantizedWeight
from slimrun.ops.format.linear import Int8Table, quantized_linear
from slimrun.ops.quant.feedback import importance

from .factors import Factors
from .head import CHUNK, Teacher, divergence
from .lookups import MOMENT, WEIGHTS
from .moments import POWER, Moment, unpacked
from .statistics import Statistics

EXPECTED = 1.0  # how much what the model expects counts beside what came
LEAST = 0.01  # of the mean: what a row costs at least, since its token may come all the same


@dataclass(frozen=True)
class Cost:
    """Errors E [V, H] of a table cost sum_v rows_v E_v moment E_v^T."""

    rows: Tensor  # [V]
    moment: Tensor  # [H, H]
    tempering: float = 1.0  # what squared gradients sum to, over the sum of the power that tempers them

    def __add__(self, other: Cost) -> Cost:
        """The cost of both together, as far as one moment can say it, the other one tempered as this one is."""
        other = Cost(other.rows * (other.tempering / self.tempering), other.moment)
        one, two = float(self.rows.sum()), float(other.rows.sum())
        moment = (self.moment * one + other.moment * two) / (one + two)
        share, more = (float(cost.moment.trace() / moment.trace()) for cost in (self, other))
        return Cost(self.rows * share + other.rows * more, moment, self.tempering)


class Tables:
    """The tables of a float model that are to be rounded with its linears, if they are `asked` for."""

    def __init__(
        self, network: GradientNetwork, layers: dict[str, Layer], samples: Sequence[Sample], asked: bool
    ) -> None:
        self.network = network
        self.layers = layers
        self.tables, self.notes = float_tables(network, layers, samples) if asked else ([], [])
        self.samples = samples
        self.weights: dict[str, Tensor] = {}
        self.biases: dict[str, Tensor | None] = {}
        for table in self.tables:
            self.weights[table.name], _ = network.affine(table.name)
            _, self.biases[table.name] = network.affine(table.places[-1])

    def add_costs(
        self, factors: Factors, statistics: Statistics, teacher: Teacher, numbers: Sequence[int], damping: float
    ) -> None:
        """Give `factors` what errors cost on the samples of these numbers; `teacher` has what all say, and the head."""
        if not self.tables:
            return
        head, expected = head_cost(teacher.of(numbers), self.weights[self.tables[-1].name])
        for table in self.tables:
            cost = head
            if table.looked_up:
                cost = lookup_cost(statistics, self.samples, numbers, expected, table.shape[1])
            if len(table.places) > 1:
                cost = head + cost
            rows = cost.rows.clamp_min(LEAST * float(cost.rows.mean()))
            factors[table.name] = importance(cost.moment, rows, damping)
            factors.rows[table.name] = (table.name, rows)

    def share(self, name: str, rounded: QuantizedWeight, teacher: Teacher) -> float:
        """KL(float || quantized) in nats a token that rounding one table alone costs the model."""
        [table] = [one for one in self.tables if one.name == name]
        before = {place: self.network.model.get_submodule(place) for place in table.places}
        self.network.replace_table(table, self._quantized(name, rounded))
        lost = 0.0
        for sample, states in zip(teacher.samples, teacher.states):
            quantized = self.network.states(sample).flatten(0, -2)
            head = self.network.head()
            lost += divergence(teacher.head, states.to(quantized), head, quantized) / len(quantized)
        for place, module in before.items():
            self.network.replace(place, module)
        return lost / len(teacher.samples)

    def install(self, weights: Mapping[str, QuantizedWeight]) -> None:
        """Put the rounded tables in their places."""
        for table in self.tables:
            name = table.name
            note_table(self.layers[name], table, self.weights[name], weights[name])
            self.network.replace_table(table, self._quantized(name, weights[name]))

    def _quantized(self, name: str, rounded: QuantizedWeight) -> Int8Table:
        linear = quantized_linear(Int8Table.quant_type, rounded, self.biases[name], self.weights[name].dtype)
        assert isinstance(linear, Int8Table)
        return linear


def head_cost(teacher: Teacher, weight: Tensor) -> tuple[Cost, Tensor]:
    """(what errors in the head [V, H] cost, how often the model expects each token [V]) on the teacher's samples."""
    count, width = weight.shape
    moment = Moment(weight)
    rows, expected = (weight.new_zeros(count, dtype=torch.float32) for _ in range(2))
    total = squared = 0.0
    for states in teacher.states:
        for part in torch.split(states, CHUNK):
            shares = teacher.head(part.to(weight)).float().softmax(dim=-1)
            variance = shares * (1 - shares)
            lengths = variance.sum(dim=1).clamp_min(1e-30)  # of the gradient at the logits, squared, in expectation
            weights = lengths.pow(POWER)
            moment.add(part.to(weights) * weights.sqrt().unsqueeze(1))
            rows += lengths.pow(POWER - 1) @ variance
            expected += shares.sum(dim=0)
            total += float(weights.sum())
            squared += float(lengths.sum())
    return Cost(rows, unpacked(moment.packed() / total, width), squared / total), expected / sum(
        map(len, teacher.states)
    )


def lookup_cost(
    statistics: Statistics, samples: Sequence[Sample], numbers: Sequence[int], expected: Tensor, width: int
) -> Cost:
    """What errors in embeddings [V, width] cost in some of all samples; the model expects each token [V] so often."""
    ids = [(sample["input_ids"] if isinstance(sample, Mapping) else sample[0]).flatten() for sample in samples]
    parts = torch.split(statistics[WEIGHTS].to(expected), [len(one) for one in ids])
    weights = torch.cat([parts[number] for number in numbers])
    tokens = torch.cat([ids[number] for number in numbers]).to(expected.device)
    seen = torch.zeros_like(expected).index_add_(0, tokens, weights)
    rows = (seen + EXPECTED * weights.sum() * expected) / (1 + EXPECTED)
    tempering = float(weights.pow(1 / POWER).sum() / weights.sum())
    return Cost(rows, unpacked(statistics[MOMENT], width).to(expected), tempering)
