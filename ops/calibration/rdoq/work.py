"""What rdoq does and keeps, counted from the shapes of the linears: for whoever wants to know before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from slimrun.ops.quant.rdoq import RDOQ

from .rounding import EVERY, MANY

MEASURED = 3  # passes of a sample to measure or to tune: forward, forward again, and back
CONVERTED = 2  # times that a part's weights are brought into the dtype of products: forward, and back
FLOAT32 = 4  # bytes
FACTORED = 4  # matrices as large as a moment at once


@dataclass(frozen=True)
class Work:
    """What rdoq does on linears of these shapes [n, k]: operations of its matrix products, and numbers passed beside.

    `tokens` are those of all `samples`, `measured_tokens` of those on which a first rounding is measured. That one, and
    those by which the bits are met, are the roundings: of all rows twice, or of some and then of all; each carries the
    errors of a linear on twice, with feedback and without. The moment of an input is factored once. Tuning takes a
    sample after the other through all parts.
    """

    linears: Mapping[str, tuple[int, int]]
    tokens: int
    measured_tokens: int = 0
    tuned: bool = True
    samples: int = 1

    @property
    def products(self) -> float:
        """Floating-point operations of samples with weights, and of errors with factors: in the dtype of products."""
        return 2 * self.weights * self.passes + self.roundings * sum(2 * n * k * k for n, k in self.linears.values())

    @property
    def factors(self) -> float:
        """Floating-point operations that make factors of moments, in float32."""
        return float(sum(columns**3 for columns in self.inputs))

    @property
    def weights(self) -> int:
        """Those of all linears."""
        return sum(rows * columns for rows, columns in self.linears.values())

    @property
    def passes(self) -> int:
        """Tokens that come through the model, one way or the other."""
        return MEASURED * (self.tokens * (1 + self.tuned) + self.measured_tokens)

    @property
    def roundings(self) -> float:
        """Times that each weight is rounded."""
        return 1 + bool(self.measured_tokens) + (1 / EVERY if self.weights >= MANY else 1)

    @property
    def states(self) -> int:
        """Numbers that linears are given and give."""
        return self.passes * sum(rows + columns for rows, columns in self.linears.values())

    @property
    def conversions(self) -> int:
        """Weights that are brought into the dtype of products; rounded ones are measured beside the exact ones."""
        times = 1 + 2 * bool(self.measured_tokens) + self.samples * self.tuned
        return CONVERTED * times * self.weights

    @property
    def moments(self) -> int:
        """Numbers of all moments."""
        return sum(columns**2 for columns in self.inputs)

    @property
    def inputs(self) -> list[int]:
        """Widths of the inputs, of which linears of one module that are equally wide are taken to share one."""
        shared = {(name.rpartition(".")[0], columns): columns for name, (_, columns) in self.linears.items()}
        return list(shared.values())

    @property
    def memory(self) -> int:
        """Bytes at the peak of factoring the widest moment: that and what it becomes, until its factor is there."""
        return FACTORED * FLOAT32 * max(self.inputs, default=0) ** 2

    @property
    def disk(self) -> int:
        """Bytes of files at most: half of each moment in the cache, each factor, and the integers of two roundings."""
        kept = sum(FLOAT32 * columns * (columns + 1) // 2 + FLOAT32 * columns**2 for columns in self.inputs)
        return kept + 2 * self.weights


def work_of(quantizer: RDOQ, linears: Mapping[str, tuple[int, int]], tokens: list[int]) -> Work:
    """The work of a method on samples of so many tokens; ValueError where a search decides how much it is."""
    if quantizer.target_kl is not None:
        raise ValueError(f"quant.target_kl={quantizer.target_kl} takes as many roundings as its search needs")
    measured = sum(tokens[:: -(-len(tokens) // quantizer.measured_prompts)]) if quantizer.measured_prompts else 0
    return Work(linears, sum(tokens), 0 if quantizer.grid else measured, quantizer.tune_rate > 0, len(tokens))
