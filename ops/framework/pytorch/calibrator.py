"""`slimrun.Calibrator`: quantizes any torch model in place, by the procedure that the method asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from slimrun.ops import calibration
from slimrun.ops.calibration.base import Layer, Progress, Remember, Sample, call, silent
from slimrun.ops.quant.base import Quantizer

from .network import TorchNetwork


class Calibrator:
    """Quantizes the torch `model` in place with `quantizer`, calibrated on `samples`.

    `forward` runs one sample; by default the model itself is called. A linear that no sample reaches keeps float
    inputs, or with `one_format` (of all quantized linears) stays float as a whole. ValueError if the model is quantized
    already. Methods that need gradients, such as RDOQ, take a causal language model of transformers.
    """

    def __init__(
        self,
        model: nn.Module,
        quantizer: Quantizer,
        samples: Sequence[Sample],
        forward: Callable[..., Any] | None = None,
        *,
        one_format: bool = False,
    ) -> None:
        network = TorchNetwork(model, forward)
        self._procedure = calibration.calibrator(network, quantizer, samples, one_format=one_format)

    @property
    def layers(self) -> dict[str, Layer]:
        """The per-layer table, by name; it begins with `quantize`."""
        return self._procedure.layers

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores must know of how it went, one line each."""
        return self._procedure.notes

    def quantize(self, remember: Remember = call, progress: Progress = silent) -> None:
        """Replace every selected linear by its integers."""
        self._procedure.quantize(remember, progress)

    def calibrate(self, progress: Progress = silent) -> list[Layer]:
        """Fix every input grid; returns the per-layer table."""
        return self._procedure.calibrate(progress)

    def run(self) -> list[Layer]:
        """`quantize`, then `calibrate`."""
        return self._procedure.run()
