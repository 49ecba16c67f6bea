"""W8A8: 8-bit weights on a min-max grid, 8-bit static activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import MinMaxQuantizer, StaticQuantizer


@dataclass(frozen=True)
class W8A8(MinMaxQuantizer, StaticQuantizer):
    """Min-max weights, static activations."""

    quant_type: ClassVar[str] = "W8A8"
