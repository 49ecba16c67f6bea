"""Observers: from the inputs a linear sees during calibration to the range that its int8 grid covers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slimrun.ops import _native

FloatArray = npt.NDArray[np.float64]

HISTOGRAM_BINS = 4096
SHRINK: FloatArray = torch.linspace(1.0, 1.0 / 64, 64, dtype=torch.float64).numpy()  # of each side, that is tried
EPSILON = float(torch.finfo(torch.float32).eps)
HEAVY_TAIL = 50.0  # max/std above which a range search cuts spikes the model needs


class Observer(Protocol):
    """Sees batches, gives a range."""

    def update(self, x: Tensor) -> None:
        """Take one batch of inputs, any shape."""

    def range(self) -> tuple[float, float]:
        """(low, high) of the grid for what was seen so far."""


def make_observer(kind: str, range_parameter: float) -> Observer:
    """The observer named `kind`; "auto" takes the histogram for light tails and min-max for heavy ones.

    range_parameter is max|x| / std(x) of the float model's inputs (`range_parameter` below); the limit of 50 is the
    one of msModelSlim's act_method 3.
    """
    if kind == "auto":
        kind = "histogram" if range_parameter <= HEAVY_TAIL else "minmax"
    return HistogramObserver() if kind == "histogram" else MinMaxObserver()


@dataclass(frozen=True)
class KnownRange:
    """The range that another observer gave when all batches had been seen."""

    low: float
    high: float

    def update(self, x: Tensor) -> None:
        """There is no batch more."""
        raise AssertionError("the range is complete")

    def range(self) -> tuple[float, float]:
        """It."""
        return self.low, self.high


class MinMaxObserver:
    """Arithmetic mean over batches of each batch's extremes (so it does clip heavy-tailed data)."""

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.batches = 0

    def update(self, x: Tensor) -> None:
        """Take one batch."""
        low, high = torch.aminmax(x)
        self.batches += 1
        self.low += (float(low) - self.low) / self.batches
        self.high += (float(high) - self.high) / self.batches

    def range(self) -> tuple[float, float]:
        """Mean of the batch extremes."""
        return self.low, self.high


class HistogramObserver:
    """Histogram of all batches, then the range with the least mean squared quantization error.

    The bins are symmetric about zero; when a batch exceeds them their width doubles and neighbours merge, which is
    exact, so no batch order changes the counts.
    """

    def __init__(self) -> None:
        self.width = 0.0
        self.counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.float64)
        self.low = 0.0
        self.high = 0.0

    def update(self, x: Tensor) -> None:
        """Take one batch."""
        low, high = (float(v) for v in torch.aminmax(x))
        self.low, self.high = min(self.low, low), max(self.high, high)
        reach = max(-low, high)
        if reach == 0.0 and self.width == 0.0:
            return
        if self.width == 0.0:
            # a power of two, so that any order of batches ends on the same bins
            self.width = 2.0 ** torch.tensor(2 * reach / HISTOGRAM_BINS).log2().ceil().item()
        while self.width * HISTOGRAM_BINS / 2 < reach:
            self._double()
        edge = self.width * HISTOGRAM_BINS / 2
        values = x.detach().to(torch.float32).reshape(-1)
        self.counts += torch.histc(values, bins=HISTOGRAM_BINS, min=-edge, max=edge).double().cpu()

    def range(self) -> tuple[float, float]:
        """The range, shrunk from the extremes on either side, that quantizes what was seen with least error."""
        if self.width == 0.0:
            return 0.0, 0.0
        counts = self.counts.numpy()
        used = counts.nonzero()[0]
        centers = np.asarray((used - HISTOGRAM_BINS // 2 + 0.5) * self.width, dtype=np.float64)
        counts = counts[used]
        low, high = self.low, self.high
        for _ in range(2):  # one side, the other, and once more from there
            highs = self.high * SHRINK
            high = float(highs[_errors(centers, counts, np.full_like(highs, low), highs).argmin()])
            lows = self.low * SHRINK
            low = float(lows[_errors(centers, counts, lows, np.full_like(lows, high)).argmin()])
        return low, high

    def _double(self) -> None:
        """Twice as wide bins about the same centre: pairs merge into the middle half."""
        pairs = self.counts.reshape(-1, 2).sum(dim=1)
        self.counts = torch.zeros_like(self.counts)
        quarter = HISTOGRAM_BINS // 4
        self.counts[quarter : 3 * quarter] = pairs
        self.width *= 2


def range_parameter(samples_std: float, low: float, high: float) -> float:
    """max(|low|, |high|) / std: how heavy the tails of a linear's input are (0 when it never varies).

    The score by which msModelSlim chooses the observer (act_method 3) and ranks linears for fallback.
    """
    return max(abs(low), abs(high)) / samples_std if samples_std > 0 else 0.0


def _errors(centers: FloatArray, counts: FloatArray, lows: FloatArray, highs: FloatArray) -> FloatArray:
    """Squared quantization error of the histogram on each 8-bit grid [lows[i], highs[i]]: [candidates]."""
    scales = np.maximum((highs - lows) / 255, EPSILON)
    offsets = np.rint(-lows / scales) - 128
    errors = np.empty_like(scales)
    _native.grid_errors(centers, counts, scales, offsets, errors)
    return errors
