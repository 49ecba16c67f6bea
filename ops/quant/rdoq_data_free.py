"""Rate-distortion optimized quantization of the weights alone: no calibration text, no gradients, seconds.

Of each matrix on its own, error relative to the row plus price * code length is minimized at the bits asked for: a
row's step is a share of its root mean square, the share follows from the entropy, and of the two nearest levels the
cheaper one is taken. What errors cost the model stays unknown, so it loses more than `rdoq` at the same size, and of
static input ranges, which need text, it has none: inputs are float, or int8 with a step a token.
Source: entropy-constrained scalar quantization (Sullivan 1996).

`steps=magnitude` takes the steps at which the objective of EntQuant (Putzky et al. 2026, arXiv 2601.22787) is least:
the absolute error relative to the matrix, plus a penalty on the mean magnitude of the integers. EntQuant finds them by
gradient descent; of a row with mean magnitude m, in steps s that are not much larger, the first is s / 4 and the second
m / s, so s is in proportion to the square root of m, and the penalty is whatever meets the bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrun.ops.compress.native import Native
from slimrun.ops.format.arithmetic import INT8_LEVELS, QuantizedWeight
from slimrun.ops.format.weights import round_to_grid

from .base import Quantizer, check_finite
from .feedback import PLAIN_PRICE, code_lengths, guarded

ACTIVATIONS = {"dynamic": "W8A8_DYNAMIC", "float": "W8A16"}  # what inputs are -> the format
STEPS = ("spread", "magnitude")  # what a row's step follows
SCALE_BITS = 32  # of a row's step
LEAST_CODED = 2**16  # weights
TRIES = 10
TOLERANCE = 0.001  # of the bits


@dataclass(frozen=True)
class RDOQDataFree(Quantizer):
    """Each matrix at `target_bits` a weight, a step a row included, by its own numbers."""

    target_bits: float = 3.5
    price: float = 0.5
    steps: str = STEPS[0]
    activations: str = "dynamic"

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        super().__post_init__()
        for name, low, high in (("target_bits", 1.5, 7.0), ("price", 0.0, 2.0)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; allowed: {low} to {high}")
        if self.steps not in STEPS:
            raise ValueError(f"steps={self.steps} is not known; allowed: {', '.join(STEPS)}")
        if self.activations not in ACTIVATIONS:
            raise ValueError(
                f"activations={self.activations} is not known; allowed: {', '.join(ACTIVATIONS)} (static ranges need "
                "text: quant=rdoq)"
            )

    @property
    def quant_type(self) -> str:
        """The format that runs such inputs."""
        return ACTIVATIONS[self.activations]

    def expected_bits(self, shape: tuple[int, int]) -> float:
        """The target, less a row's step; rows too short for that get the half."""
        return max(self.target_bits - SCALE_BITS / shape[1], self.target_bits / 2)

    def quantize_weight(self, weight: Tensor) -> QuantizedWeight:
        """Integers in [-127, 127] of a weight [n, k] that take the target, as far as the matrix can."""
        weight = check_finite(weight)
        spread = row_sizes(weight, self.steps)
        spread = torch.where(spread > 0, spread, spread.max() if float(spread.max()) > 0 else 1.0)
        target = self.expected_bits((weight.shape[0], weight.shape[1]))
        share = math.sqrt(2 * math.pi * math.e) * 2.0**-target  # of gaussian rows
        lengths = torch.zeros(256, device=weight.device)
        for _ in range(TRIES):
            steps = guarded(share * spread, weight)
            values = cheapest(weight, steps, lengths, self.price)
            lengths, bits = code_lengths(values), coded_bits(values)
            if abs(bits - target) <= TOLERANCE * target:
                break
            share *= 2.0 ** (bits - target)  # twice the step, a bit less
        return QuantizedWeight(values, steps)


def row_sizes(weight: Tensor, steps: str) -> Tensor:
    """[n, 1]: what steps of STEPS are in proportion to, in all one root mean square of the matrix."""
    if steps == "spread":
        return weight.square().mean(dim=1, keepdim=True).sqrt()
    sizes = weight.abs().mean(dim=1, keepdim=True).sqrt()
    return sizes * (weight.square().mean() / sizes.square().mean().clamp_min(1e-30)).sqrt()


def cheapest(weight: Tensor, steps: Tensor, lengths: Tensor, price: float) -> Tensor:
    """int8 [n, k]: of the two levels beside each weight that with less squared error, in steps, + price * its bits.

    At a price of 1 a bit costs what it costs at the slope that the step itself has.
    """
    if not price or not bool(lengths.any()):
        return round_to_grid(weight, steps)
    place = weight / steps
    low = place.floor().clamp_(-INT8_LEVELS, INT8_LEVELS - 1)
    bits = lengths * (price * PLAIN_PRICE)
    index = low.long() + 128
    gain = (place - low).square_() + bits[index]
    gain -= (place - low - 1).square_() + bits[index + 1]
    return (low + (gain > 0)).to(torch.int8)


def coded_bits(values: Tensor) -> float:
    """Bits a weight that the native codec takes for int8 values; their entropy where tables would outweigh them."""
    if values.numel() >= LEAST_CODED:
        return 8 * sum(part.nbytes for part in Native().encode(values.cpu().numpy()).values()) / values.numel()
    counts = torch.bincount(values.reshape(-1).long() + 128, minlength=256).double()
    shares = counts[counts > 0] / values.numel()
    return float(-(shares * shares.log2()).sum())
