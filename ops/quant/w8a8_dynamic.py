"""W8A8_DYNAMIC: 8-bit weights on a min-max grid, 8-bit activations with a scale of each token.

What people fall back to when static activations cost too much. It needs calibration for `do_smooth` alone: a token has
one step for all channels, so a channel that is always large leaves few levels to the others (`smooth.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from slimrun.ops.format.arithmetic import token_scales

from .base import MinMaxQuantizer


@dataclass(frozen=True)
class W8A8Dynamic(MinMaxQuantizer):
    """Min-max weights, dynamic activations."""

    quant_type = "W8A8_DYNAMIC"

    do_smooth: bool = False

    @property
    def smooths_norms(self) -> bool:
        """The knob `do_smooth`."""
        return self.do_smooth

    @property
    def shifts_norms(self) -> bool:
        """No: the grid of a token has no offset that would take it, and not every engine has a place for a bias."""
        return False

    def round_inputs(self, inputs: Tensor, low: float, high: float) -> Tensor:
        """Each token on its own grid, whatever was calibrated."""
        scale = token_scales(inputs)
        return (inputs / scale).round() * scale
