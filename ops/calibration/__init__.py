"""From a float model to a quantized one, in any framework that gives a `Network`.

A method names its procedure; here, and nowhere else, it is found: runs, `slimrun.Calibrator` and the msModelSlim names
all come by.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slimrun.ops.quant.base import Quantizer

from .base import Network, Sample
from .rdoq.calibrator import RateDistortionCalibrator
from .sequential import SequentialCalibrator

PROCEDURES: dict[str, type[SequentialCalibrator]] = {
    "sequential": SequentialCalibrator,
    "rdoq": RateDistortionCalibrator,
}


def calibrator(
    network: Network,
    quantizer: Quantizer,
    samples: Sequence[Sample],
    dtype: torch.dtype | None = None,
    *,
    one_format: bool = False,
) -> SequentialCalibrator:
    """What quantizes the network by the procedure of the method; arguments as of `SequentialCalibrator`."""
    return PROCEDURES[quantizer.procedure](network, quantizer, samples, dtype, one_format=one_format)
