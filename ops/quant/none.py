"""No quantization: the float model goes through the same bundle and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from slimrun.ops.format.linear import FLOAT

from .base import Quantizer


@dataclass(frozen=True)
class NoQuantization(Quantizer):
    """Every linear stays float."""

    quant_type = FLOAT

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        super().__post_init__()
        if self.embeddings is not None:
            raise ValueError(f"embeddings={self.embeddings} quantizes, and quant=none does not; allowed: null")
