"""What rdoq computes and keeps, counted from the shapes of the linears: for whoever wants to know before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from slimrun.ops.quant.rdoq import RDOQ

MEASURED = 3  # passes of a sample to measure or to tune: forward, forward again, and back
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Work:
    """Floating-point operations of rdoq on linears of these shapes [n, k]: those of its matrix products alone.

    `tokens` are those of all samples, `measured_tokens` of those on which a first rounding is measured. That one, and
    two by which the bits are met, are the roundings; each carries the errors of a linear on twice, with feedback and
    without. The moment of an input is factored once.
    """

    linears: Mapping[str, tuple[int, int]]
    tokens: int
    measured_tokens: int = 0
    tuned: bool = True

    @property
    def products(self) -> float:
        """Of samples with weights, and of errors with factors: in bfloat16 where that is faster."""
        weights = sum(rows * columns for rows, columns in self.linears.values())
        passes = MEASURED * (self.tokens * (1 + self.tuned) + self.measured_tokens)
        roundings = 2 + bool(self.measured_tokens)
        return 2 * weights * passes + roundings * sum(2 * n * k * k for n, k in self.linears.values())

    @property
    def factors(self) -> float:
        """Of moments into factors, in float32."""
        return float(sum(columns**3 for columns in self.inputs))

    @property
    def inputs(self) -> list[int]:
        """Widths of the inputs, of which linears of one module that are equally wide are taken to share one."""
        shared = {(name.rpartition(".")[0], columns): columns for name, (_, columns) in self.linears.items()}
        return list(shared.values())

    @property
    def disk(self) -> int:
        """Bytes of files at most: half of each moment in the cache, each factor, and the integers of two roundings."""
        kept = sum(FLOAT32 * columns * (columns + 1) // 2 + FLOAT32 * columns**2 for columns in self.inputs)
        return kept + 2 * sum(rows * columns for rows, columns in self.linears.values())


def work_of(quantizer: RDOQ, linears: Mapping[str, tuple[int, int]], tokens: list[int]) -> Work:
    """The work of a method on samples of so many tokens; ValueError where a search decides how much it is."""
    if quantizer.target_kl is not None:
        raise ValueError(f"quant.target_kl={quantizer.target_kl} takes as many roundings as its search needs")
    measured = sum(tokens[:: -(-len(tokens) // quantizer.measured_prompts)]) if quantizer.measured_prompts else 0
    return Work(linears, sum(tokens), 0 if quantizer.grid else measured, quantizer.tune_rate > 0)
