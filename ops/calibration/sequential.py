"""From a float model to its quantized form, layer after layer: which linears, their integers, their input grids.

Calibration is sequential: the samples run, part by part of it, through the model whose linears are already quantized,
so a layer is observed on what its quantized predecessors produce. Each linear's observer takes the sample's input and
the grid follows it at once. That cannot be shared between runs: another method, fraction or selection of layers
gives other outputs. What is measured on the float model before (tails and peaks of each input) can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from slimrun.ops.format.arithmetic import QuantizedWeight
from slimrun.ops.format.linear import FLOAT, Int8Linear, QuantizedLinear, WeightOnlyLinear, quantized_linear
from slimrun.ops.memory import Room
from slimrun.ops.quant.base import Quantizer, StaticQuantizer

from .base import FLOAT_SAMPLES, Layer, Network, Progress, Remember, Sample, call, silent, weight_error
from .journal import Journal, Noted, Results, Tensors
from .ranges import InputRange, InputRanges, input_statistics
from .selection import calibration_notes, check_float, keep_heaviest, select
from .smoothing import smooth
from .states import Walk, failing
from .tables import quantize_tables


class SequentialCalibrator:
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
        check_float(network, quantizer)
        self.network = network
        self.quantizer = quantizer
        self.samples = samples
        self.dtype = dtype
        self.one_format = one_format
        self.layers: dict[str, Layer] = {}
        self.notes: list[str] = []  # what a reader of the scores must know of how it went
        self.smoothed: list[str] = []  # norms that smoothing changed
        self.journal = Journal()  # what a run that is killed goes on from
        self._parts = 1  # of the network
        self._ranges = InputRanges()  # of the quantized linears whose format has a grid
        self._raised: dict[str, int] = {}  # linear -> rows whose step was raised
        self._calibration_notes: list[str] = []  # those of the notes that calibrating gave

    def run(self) -> list[Layer]:
        """Quantize the weights, then calibrate the inputs; returns the per-layer table."""
        self.quantize()
        return self.calibrate()

    @torch.no_grad()
    def quantize(self, remember: Remember = call, progress: Progress = silent) -> None:
        """Replace every selected linear by its integers.

        The statistics of the float model go through `remember`, unless smoothing has changed that model before.
        """
        quantizer, selected = self.quantizer, self.select()
        if quantizer.quant_type == FLOAT:
            return
        if not self.samples and self._walks:
            needing = "static activations" if quantizer.input_observer else "smoothing and fallback_level"
            raise ValueError(f"{needing} need calibration samples, and there are none")
        if quantizer.smooths_norms:
            walk = Walk(self.network, self.samples, self._parts)
            self.smoothed, notes = smooth(walk, quantizer, set(selected), shifts=quantizer.shifts_norms)
            self.notes += notes
        if quantizer.fallback_level or quantizer.input_observer == "auto":
            samples, journal = self.samples[:FLOAT_SAMPLES], Journal() if self.smoothed else self.journal
            statistics = (call if self.smoothed else remember)(
                lambda: input_statistics(self.network, samples, self._parts, selected, journal)
            )
            for name, parameter, peak in zip(selected, statistics["range_parameter"], statistics["first_peak"]):
                self.layers[name].range_parameter, self.layers[name].first_peak = float(parameter), float(peak)
        kept = keep_heaviest(self.layers, selected, quantizer)
        results = Results(self.journal, "weights")
        for done, name in enumerate(selected):
            if name not in kept:
                self._quantize_layer(name, results)
            progress(done + 1, len(selected))
        self._quantize_tables()
        self._leave_floats()

    def _quantize_tables(self) -> None:
        """Embeddings and output head, where the method is to take them."""
        if self.quantizer.embeddings is not None:
            self.notes += quantize_tables(self.network, self.layers, self.samples, self.dtype)

    def select(self) -> list[str]:
        """Begin the table of layers; the linears to quantize, in module order."""
        run = Walk(self.network, self.samples, 1).run_first if self.samples else None
        selection = select(self.network, self.quantizer, run)
        self.layers = selection.layers
        self.notes += selection.notes
        if self.samples and self._walks:
            with failing(0, self.samples[0]):
                self._parts = self.network.tell_parts(self.samples[0])
        return selection.names

    @property
    def _walks(self) -> bool:
        """Whether samples run through the model."""
        quantizer = self.quantizer
        return bool(quantizer.input_observer or quantizer.fallback_level or quantizer.smooths_norms)

    @torch.no_grad()
    def calibrate(self, progress: Progress = silent) -> list[Layer]:
        """Run the samples through the quantized model and fix every input grid."""
        for name, one in self._ranges.items():
            one.observe(self.quantizer.input_observer, self.layers[name])
        if self._ranges:
            noted = Noted(self.journal, "ranges", self._ranges.seen, self._ranges.see_again)
            with self.network.watching({name: one.update for name, one in self._ranges.items()}):
                for done, total in Walk(self.network, self.samples, self._parts, noted, self._ranges):
                    progress(done, total)
        if self._ranges and not any(one.tokens for one in self._ranges.values()):
            raise ValueError("no calibration sample reaches a linear that was quantized; give others")
        self._raised = {}
        for name, one in self._ranges.items():
            layer = self.layers[name]
            layer.input_low, layer.input_high = one.observer.range()
            if one.linear.raised_rows:
                self._raised[name] = one.linear.raised_rows
            if not one.reached:
                self._leave_unreached(name, one)
        self._renew_notes()
        self._ranges.clear()
        return list(self.layers.values())

    def _leave_unreached(self, name: str, one: InputRange) -> None:
        """What a linear becomes of whose inputs nothing is known."""
        layer = self.layers[name]
        layer.quantized = layer.float_inputs = one.put_back is None
        layer.note = f"{'inputs ' if layer.quantized else ''}kept float, because {one.lack}"
        if one.put_back is not None:
            one.put_back()
        else:
            layer.format = WeightOnlyLinear.quant_type
            self.network.replace(name, one.without_grid(layer.format))

    def _renew_notes(self) -> None:
        """Say what calibrating has found, in the place of what an earlier time has."""
        self.notes = [note for note in self.notes if note not in self._calibration_notes]
        self._calibration_notes = calibration_notes(self.layers, self._raised)
        self.notes += self._calibration_notes

    def _quantize_layer(self, name: str, results: Results) -> None:
        with self.network.linear(name) as (weight, bias):
            try:
                result = results.get(name, partial(_integers, self.quantizer, weight, self.network.room))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            quantized = QuantizedWeight(result["values"], result["scale"])
            layer = self.layers[name]
            layer.quantized = True
            layer.sqnr_db, layer.clipped = result["error"].tolist()
            linear = quantized_linear(self.quantizer.quant_type, quantized, bias, self.dtype or weight.dtype)
        self._put(name, quantized, linear)

    def _put(self, name: str, weight: QuantizedWeight, linear: QuantizedLinear) -> None:
        """Put the quantized linear in the place of the float one, or of that of another try."""
        self.layers[name].note = self.layers[name].format = ""
        put_back = self.network.replace(name, linear)
        if isinstance(linear, Int8Linear):
            static = self.quantizer if isinstance(self.quantizer, StaticQuantizer) else StaticQuantizer()
            back = put_back if self.one_format else None
            knobs = static.reciprocal_scale, static.clips_first(name)
            self._ranges[name] = InputRange(name, linear, weight, back, *knobs)

    def _leave_floats(self) -> None:
        """Let go of the memory that the float linears took."""
        self.network.leave(sum(math.prod(layer.shape) for layer in self.layers.values() if layer.quantized))


def _integers(quantizer: Quantizer, weight: Tensor, room: Room) -> Tensors:
    """`values` and `scale` of a weight, and its `error`."""
    quantized = quantizer.quantize_weight(weight)
    lost = torch.tensor(weight_error(weight, quantized), dtype=torch.float64)
    return {"values": room.keep(quantized.values), "scale": quantized.scale, "error": lost}
