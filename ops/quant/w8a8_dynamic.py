"""W8A8_DYNAMIC: 8-bit weights on a min-max grid, 8-bit activations with a scale of each token.

No calibration: what people fall back to when static activations cost too much.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import MinMaxQuantizer


@dataclass(frozen=True)
class W8A8Dynamic(MinMaxQuantizer):
    """Min-max weights, dynamic activations."""

    quant_type = "W8A8_DYNAMIC"
