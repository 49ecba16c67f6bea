"""No quantization: the float model goes through the same bundle and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from slimrun.ops.format.linear import FLOAT

from .base import Quantizer


@dataclass(frozen=True)
class NoQuantization(Quantizer):
    """Every linear stays float."""

    quant_type = FLOAT
