"""W8A8: 8-bit weights on a min-max grid, 8-bit static activations."""

from __future__ import annotations

from dataclasses import dataclass

from .base import MinMaxQuantizer, StaticQuantizer


@dataclass(frozen=True)
class W8A8(MinMaxQuantizer, StaticQuantizer):
    """Min-max weights, static activations."""

    quant_type = "W8A8"
