"""W8A16: 8-bit weights on a min-max grid, float activations.

No calibration; saves memory and bandwidth, not arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import MinMaxQuantizer


@dataclass(frozen=True)
class W8A16(MinMaxQuantizer):
    """Min-max weights, float activations."""

    quant_type = "W8A16"
