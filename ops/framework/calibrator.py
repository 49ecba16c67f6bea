"""From a float model to its quantized form, in any framework: which linears, their integers, their input grids.

Calibration is sequential: one sample after the other runs through the model whose linears are already quantized, so
a layer is observed on what its quantized predecessors produce. Each linear's observer takes the sample's input and
the grid follows it at once. That cannot be shared between runs: another method, fraction or selection of layers
gives other outputs. What is measured on the float model before (tails and peaks of each input) can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from slimrun.ops.format.arithmetic import ActivationGrid, QuantizedWeight, activation_grid
from slimrun.ops.format.linear import FLOAT, Int8Linear, QuantizedLinear, WeightOnlyLinear, quantized_linear
from slimrun.ops.framework.base import Arrays, Layer, Progress, Remember, call, silent
from slimrun.ops.framework.smoothing import Smoothable, smooth
from slimrun.ops.memory import give_back
from slimrun.ops.quant.base import Quantizer, StaticQuantizer
from slimrun.ops.quant.observer import Observer, make_observer, range_parameter

Sample = Sequence[Any] | Mapping[str, Any]  # model(*sample) or model(**sample)
Watcher = Callable[[Tensor], None]
# why a linear cannot be replaced, or has no input grid
WEIGHT_READ = "the model reads the weight itself"
OTHER_INPUTS = "the model gives it more than an input"
OTHER_PRODUCT = "it computes something else than weight times input plus bias"
UNREACHED = "no calibration sample reached it"
FLOAT_SAMPLES = 5  # how many samples the float statistics look at, as msModelSlim does


class Network(Smoothable, Protocol):
    """What the Calibrator needs of a model: its linears by name, as torch tensors that share their memory."""

    def kept(self) -> Mapping[str, str]:
        """Linears that stay float whatever the method, and why."""

    def quantized(self) -> list[str]:
        """Names of the linears that are quantized already."""

    def used_otherwise(self, names: Sequence[str], run: Callable[[], Any]) -> dict[str, str]:
        """Linear -> why it cannot be replaced: what the model does with it beside calling it, while `run` runs."""

    def linear(self, name: str) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """Weight and bias of a float linear, good until the context ends."""

    def replace(self, name: str, linear: QuantizedLinear) -> Callable[[], None]:
        """Put a quantized linear in the place of the one that is there; calling what is returned puts it back."""

    def watching(self, watchers: Mapping[str, Watcher]) -> AbstractContextManager[None]:
        """Meanwhile each linear's input goes to its watcher before the linear computes.

        A watcher may change the quantized linear it was given for; what is computed next follows.
        """

    def run(self, sample: Sample) -> Any:
        """The model on one sample."""


class Calibrator:
    """Quantizes the network in place with `quantizer`, calibrated on `samples`; ValueError if it is quantized already.

    `dtype` is the one in which scales are stored, None for each weight's own. A linear that no sample reaches has no
    input grid: its weights are quantized and its inputs stay float, or with `one_format` (of all quantized linears in
    the file) it stays float as a whole.
    """

    def __init__(
        self,
        network: Network,
        quantizer: Quantizer,
        samples: Sequence[Sample],
        dtype: torch.dtype | None = None,
        *,
        one_format: bool = False,
    ) -> None:
        if quantizer.quant_type != FLOAT and (done := network.quantized()):
            raise ValueError(
                f"the model is quantized already: {several(done)}; load the float model anew, or take quant=none"
            )
        self.network = network
        self.quantizer = quantizer
        self.samples = samples
        self.dtype = dtype
        self.one_format = one_format
        self.layers: dict[str, Layer] = {}
        self.notes: list[str] = []  # what a reader of the scores must know of how it went
        self.smoothed: list[str] = []  # norms that smoothing changed
        self._weights: dict[str, QuantizedWeight] = {}
        self._linears: dict[str, QuantizedLinear] = {}
        # those with a grid that no sample has reached so far, and what puts the float one back
        self._unreached: dict[str, Callable[[], None] | None] = {}
        self._raised: dict[str, int] = {}  # linear -> rows whose step was raised
        self._found: list[str] = []  # those of the notes that calibrating gave

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
        if self.quantizer.quant_type == FLOAT:
            return
        observer = self.quantizer.observer if isinstance(self.quantizer, StaticQuantizer) else ""
        if not self.samples and (observer or self.quantizer.fallback_level):
            raise ValueError("static activations need calibration samples, and there are none")
        if getattr(self.quantizer, "do_smooth", False):
            runs = [partial(self._run, index) for index in range(len(self.samples))]
            self.smoothed, notes = smooth(self.network, self.quantizer, set(selected), runs)
            self.notes += notes
        if self.quantizer.fallback_level or observer == "auto":
            statistics = (call if self.smoothed else remember)(lambda: self._measure_inputs(selected))
            for name, parameter, peak in zip(selected, statistics["range_parameter"], statistics["first_peak"]):
                self.layers[name].range_parameter, self.layers[name].first_peak = float(parameter), float(peak)
        fallback = self._fallback(selected)
        for name in fallback:
            self.layers[name].fallback = True
        if len(fallback) == len(selected):
            level = self.quantizer.fallback_level
            self.notes.append(f"fallback_level={level}: every linear stays float, nothing is quantized")
        for done, name in enumerate(selected):
            if not self.layers[name].fallback:
                self._quantize_layer(name)
            progress(done + 1, len(selected))

    def select(self) -> list[str]:
        """Begin the table of layers; the linears to quantize, in module order.

        Those are the ones that the method covers and the model does nothing else with than call them.
        """
        shapes, kept = self.network.linears(), self.network.kept()
        self.layers = {
            name: Layer(name, shape, quantized=False, note=kept.get(name, "")) for name, shape in shapes.items()
        }
        if self.quantizer.quant_type == FLOAT:
            return []
        covered = [name for name in self.quantizer.covered(list(shapes)) if name not in kept]
        apart = self.network.used_otherwise(covered, partial(self._run, 0)) if self.samples else {}
        for name, reason in apart.items():
            self.layers[name].fallback, self.layers[name].note = True, f"kept float, because {reason}"
        self.notes += grouped(self.layers[name] for name in covered if name in apart)
        if len(apart) == len(covered):
            raise ValueError(f"the model has nothing to quantize: {'; '.join(self.notes)}")
        return [name for name in covered if name not in apart]

    @torch.no_grad()
    def calibrate(self, progress: Progress = silent) -> list[Layer]:
        """Run the samples through the quantized model and fix every input grid."""
        observers = {}
        if isinstance(self.quantizer, StaticQuantizer):
            kind = self.quantizer.observer
            observers = {name: make_observer(kind, self.layers[name].range_parameter) for name in self._unreached}
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
        if observers and len(self._unreached) == len(observers):
            raise ValueError("no calibration sample reaches a linear that was quantized; give others")
        for name in self._unreached:
            self._leave_inputs(name)
        self._raised = {name: rows for name in observers if (rows := getattr(self._linears[name], "raised_rows", 0))}
        self._renew_notes()
        for kept in (self._weights, self._linears, self._unreached):
            kept.clear()
        return list(self.layers.values())

    def _leave_inputs(self, name: str) -> None:
        """What a linear becomes of whose inputs nothing is known."""
        layer, put_back = self.layers[name], self._unreached[name]
        layer.fallback, layer.quantized = True, put_back is None
        layer.note = f"{'inputs ' if layer.quantized else ''}kept float, because {UNREACHED}"
        if put_back is not None:
            put_back()
        else:
            linear, weight = self._linears[name], self._weights[name]
            self.network.replace(name, quantized_linear(WeightOnlyLinear.quant_type, weight, linear.bias, linear.dtype))

    def _renew_notes(self) -> None:
        """Say what calibrating has found, in the place of what an earlier time has."""
        self.notes = [note for note in self.notes if note not in self._found]
        self._found = grouped(layer for layer in self.layers.values() if layer.note.endswith(UNREACHED))
        raised = {name: rows for name, rows in self._raised.items() if not self.layers[name].fallback}
        for name, rows in raised.items():
            self.layers[name].note = f"a larger step in {rows} rows, so that int32 holds their bias"
        if raised:
            count = sum(raised.values())
            self._found.append(f"{several(raised)}: a larger step in {count} rows, so that int32 holds their bias")
        self.notes += self._found

    def _observe(self, name: str, observer: Observer) -> Watcher:
        """A watcher that moves the linear's grid to what its observer has seen, this input included."""
        linear, weight = self._linears[name], self._weights[name]
        assert isinstance(linear, Int8Linear)

        def watch(x: Tensor) -> None:
            if not x.numel():  # an expert without tokens
                return
            self._unreached.pop(name, None)
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
                if not inputs.numel():
                    return
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
        self._put(name, quantized, linear)

    def _put(self, name: str, weight: QuantizedWeight, linear: QuantizedLinear) -> None:
        """The quantized linear in the place of the float one, or of that of another try."""
        self._weights[name], self._linears[name] = weight, linear
        self.layers[name].note = ""
        put_back = self.network.replace(name, linear)
        if isinstance(linear, Int8Linear):
            self._unreached[name] = put_back if self.one_format else None

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


def grouped(layers: Iterable[Layer]) -> list[str]:
    """A line for each note, with the layers that have it."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        found.setdefault(layer.note, []).append(layer.name)
    return [f"{several(names)}: {note}" for note, names in found.items()]


def several(names: Collection[str]) -> str:
    """How many linears, and the first of them."""
    first = ", ".join([*names][:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} linear{'s' if len(names) > 1 else ''} ({first})"


def weight_error(weight: Tensor, quantized: QuantizedWeight) -> tuple[float, float]:
    """(signal to noise in dB, share of clipped weights) of the quantized weight."""
    weight = weight.detach().to(torch.float32)
    error = (quantized.values * quantized.scale).sub_(weight)
    noise, signal = float(torch.linalg.vector_norm(error)), float(torch.linalg.vector_norm(weight))
    sqnr = 20 * math.log10(signal / noise) if noise > 0 and signal > 0 else float("inf")
    edge = (quantized.values >= 127) | (quantized.values <= -127)  # only there the grid can cut
    clipped = error[edge].abs() > 0.5001 * quantized.scale.expand_as(error)[edge]
    return sqnr, float(clipped.sum()) / weight.numel()
