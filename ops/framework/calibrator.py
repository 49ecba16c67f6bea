"""From a float model to its quantized form, in any framework: which linears, their integers, their input grids.

Calibration is sequential: one sample after the other runs through the model whose linears are already quantized, so
a layer is observed on what its quantized predecessors produce. Each linear's observer takes the sample's input and
the grid follows it at once. That cannot be shared between runs: another method, fraction or selection of layers
gives other outputs. What is measured on the float model before (tails and peaks of each input) can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ops.framework.base import Arrays, Layer, Progress, Remember, call, silent
from ops.framework.int8_linear import Int8Linear, QuantizedLinear, quantized_linear
from ops.framework.smoothing import Smoothable, smooth
from ops.memory import give_back
from ops.quant.base import ActivationGrid, QuantizedWeight, Quantizer, StaticQuantizer, activation_grid
from ops.quant.observer import Observer, make_observer, range_parameter

Sample = Sequence[Any] | Mapping[str, Any]  # model(*sample) or model(**sample)
Watcher = Callable[[Tensor], None]
FLOAT_SAMPLES = 5  # how many samples the float statistics look at, as msModelSlim does


class Network(Smoothable, Protocol):
    """What the Calibrator needs of a model: its linears by name, as torch tensors that share their memory."""

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name and shape [n, k] of every float linear, in module order."""

    def kept(self) -> Mapping[str, str]:
        """Linears that stay float whatever the method, and why."""

    def linear(self, name: str) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """Weight and bias of a float linear, good until the context ends."""

    def replace(self, name: str, linear: QuantizedLinear) -> None:
        """Put a quantized linear in the place of the float one."""

    def watching(self, watchers: Mapping[str, Watcher]) -> AbstractContextManager[None]:
        """Meanwhile each linear's input goes to its watcher before the linear computes.

        A watcher may change the quantized linear it was given for; what is computed next follows.
        """

    def run(self, sample: Sample) -> Any:
        """The model on one sample."""


class Calibrator:
    """Quantizes the network in place with `quantizer`, calibrated on `samples`.

    `dtype` is the one in which scales are stored, None for each weight's own.
    """

    def __init__(
        self, network: Network, quantizer: Quantizer, samples: Sequence[Sample], dtype: torch.dtype | None = None
    ) -> None:
        self.network = network
        self.quantizer = quantizer
        self.samples = samples
        self.dtype = dtype
        self.layers: dict[str, Layer] = {}
        self.notes: list[str] = []  # what a reader of the scores must know of how it went
        self.smoothed: list[str] = []  # norms that smoothing changed
        self._weights: dict[str, QuantizedWeight] = {}
        self._linears: dict[str, QuantizedLinear] = {}

    def run(self) -> list[Layer]:
        """Quantize the weights, then calibrate the inputs; returns the per-layer table."""
        self.quantize()
        return self.calibrate()

    @torch.no_grad()
    def quantize(self, remember: Remember = call, progress: Progress = silent) -> None:
        """Replace every selected linear by its integers.

        The statistics of the float model go through `remember`, unless smoothing has changed that model before.
        """
        selected = self.select()
        if self.quantizer.quant_type == "FLOAT":
            return
        observer = self.quantizer.observer if isinstance(self.quantizer, StaticQuantizer) else ""
        if not self.samples and (observer or self.quantizer.fallback_level):
            raise ValueError("static activations need calibration samples, and there are none")
        if getattr(self.quantizer, "do_smooth", False):
            runs = [partial(self._run, index) for index in range(len(self.samples))]
            self.smoothed = smooth(self.network, self.quantizer, set(selected), runs)
        if self.quantizer.fallback_level or observer == "auto":
            statistics = (call if self.smoothed else remember)(lambda: self._measure_inputs(selected))
            for name, parameter, peak in zip(selected, statistics["range_parameter"], statistics["first_peak"]):
                self.layers[name].range_parameter, self.layers[name].first_peak = float(parameter), float(peak)
        for name in self._fallback(selected):
            self.layers[name].fallback = True
        for done, name in enumerate(selected):
            if not self.layers[name].fallback:
                self._quantize_layer(name)
            progress(done + 1, len(selected))

    def select(self) -> list[str]:
        """Begin the table of layers; the linears that the method covers, in module order."""
        shapes, kept = self.network.linears(), self.network.kept()
        self.layers = {
            name: Layer(name, shape, quantized=False, note=kept.get(name, "")) for name, shape in shapes.items()
        }
        ignored = self.quantizer.ignored(list(shapes))
        return [name for name in shapes if name not in ignored and name not in kept]

    @torch.no_grad()
    def calibrate(self, progress: Progress = silent) -> list[Layer]:
        """Run the samples through the quantized model and fix every input grid."""
        observers = {}
        if isinstance(self.quantizer, StaticQuantizer):
            kind = self.quantizer.observer
            observers = {name: make_observer(kind, self.layers[name].range_parameter) for name in self._weights}
        watchers = {name: self._observe(name, observer) for name, observer in observers.items()}
        with self.network.watching(watchers):
            for index in range(len(self.samples) if observers else 0):
                self._run(index)
                give_back()
                progress(index + 1, len(self.samples))
        for name, observer in observers.items():
            layer = self.layers[name]
            layer.observer = type(observer).__name__.removesuffix("Observer").lower()
            layer.input_low, layer.input_high = observer.range()
        self._weights.clear()
        self._linears.clear()
        return list(self.layers.values())

    def _observe(self, name: str, observer: Observer) -> Watcher:
        """A watcher that moves the linear's grid to what its observer has seen, this input included."""
        linear, weight = self._linears[name], self._weights[name]
        assert isinstance(linear, Int8Linear)

        def watch(x: Tensor) -> None:
            observer.update(x)
            linear.set_grid(weight, self._grid(observer, linear.dtype))

        return watch

    @staticmethod
    def _grid(observer: Observer, dtype: torch.dtype) -> ActivationGrid:
        return activation_grid(*observer.range(), dtype)

    def _measure_inputs(self, names: Sequence[str]) -> Arrays:
        """Each linear's input in the float model over the first samples: heaviness of its tails, first peak [names]."""
        lows, highs, stds, peaks = ({name: 0.0 for name in names} for _ in range(4))

        def measure(name: str) -> Watcher:
            def watch(inputs: Tensor) -> None:
                x = inputs.detach().to(torch.float32).reshape(-1, inputs.shape[-1])
                low, high = torch.aminmax(x, dim=0)
                lows[name] = min(lows[name], float(low.min()))
                highs[name] = max(highs[name], float(high.max()))
                # the original's shift is the sum of the extremes, not half of it: kept, the ranking depends on it
                stds[name] = max(stds[name], float((x - (low + high)).std()))

            return watch

        with self.network.watching({name: measure(name) for name in names}):
            for index in range(min(FLOAT_SAMPLES, len(self.samples))):
                self._run(index)
                if index == 0:
                    peaks = {name: max(-lows[name], highs[name]) for name in names}
        tails = [range_parameter(stds[name], lows[name], highs[name]) for name in names]
        return {"range_parameter": np.array(tails), "first_peak": np.array([peaks[name] for name in names])}

    def _fallback(self, names: Sequence[str]) -> list[str]:
        """The first `fallback_level` linears in the method's ranking, in module order on ties."""
        ranked = sorted(names, key=lambda name: -float(getattr(self.layers[name], self.quantizer.ranks_by)))
        return ranked[: self.quantizer.fallback_level]

    def _quantize_layer(self, name: str) -> None:
        with self.network.linear(name) as (weight, bias):
            try:
                quantized = self.quantizer.quantize_weight(weight)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            layer = self.layers[name]
            layer.quantized = True
            layer.sqnr_db, layer.clipped = weight_error(weight, quantized)
            linear = quantized_linear(self.quantizer.quant_type, quantized, bias, self.dtype or weight.dtype)
        self._weights[name], self._linears[name] = quantized, linear
        self.network.replace(name, linear)

    def _run(self, index: int) -> Any:
        """The model on one sample; ValueError says which when it does not fit."""
        sample = self.samples[index]
        try:
            return self.network.run(sample)
        except (RuntimeError, TypeError, IndexError, ValueError, AttributeError) as error:
            if "out of memory" in str(error).lower():
                raise
            call = "model(**sample)" if isinstance(sample, Mapping) else "model(*sample)"
            first = str(error).strip().split("\n")[0]
            raise ValueError(f"calibration sample {index}: {call} fails: {first}") from error


def weight_error(weight: Tensor, quantized: QuantizedWeight) -> tuple[float, float]:
    """(signal to noise in dB, share of clipped weights) of the quantized weight."""
    weight = weight.detach().to(torch.float32)
    error = (quantized.values * quantized.scale).sub_(weight)
    noise, signal = float(torch.linalg.vector_norm(error)), float(torch.linalg.vector_norm(weight))
    sqnr = 20 * math.log10(signal / noise) if noise > 0 and signal > 0 else float("inf")
    edge = (quantized.values >= 127) | (quantized.values <= -127)  # only there the grid can cut
    clipped = error[edge].abs() > 0.5001 * quantized.scale.expand_as(error)[edge]
    return sqnr, float(clipped.sum()) / weight.numel()
