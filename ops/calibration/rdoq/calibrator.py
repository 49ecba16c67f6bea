"""Rate-distortion optimized quantization of a model: measure, fold, round at one slope, tune, fix the ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from slimrun.ops.calibration.base import (
    FLOAT_SAMPLES,
    GradientNetwork,
    Layer,
    Progress,
    Remember,
    Sample,
    call,
    silent,
    weight_error,
)
from slimrun.ops.calibration.journal import Journal
from slimrun.ops.calibration.ranges import InputRange
from slimrun.ops.calibration.search import meet
from slimrun.ops.calibration.sequential import SequentialCalibrator
from slimrun.ops.calibration.states import Walk
from slimrun.ops.calibration.wiring import Fold, skipped
from slimrun.ops.format.arithmetic import QuantizedWeight
from slimrun.ops.format.linear import quantized_linear
from slimrun.ops.memory import Room
from slimrun.ops.quant.rdoq import BITS, MOMENTS, RDOQ, Fallback

from .attribution import SHARES, AttributedLinear, measured_shares
from .factors import FACTORS, factored
from .file_size import aimed_at, short
from .fisher import measure
from .folding import find_folds, smooth_inputs
from .head import Teacher, teacher
from .held_out import HeldOut, count_held_out
from .inputs import input_losses, leave_worst_inputs
from .rounding import Rounding
from .table import Tables
from .tuning import TunedLinear, tuned

BESIDE = 2**25  # bytes of what is measured that lie in memory, more in files


class RateDistortionCalibrator(SequentialCalibrator):
    """Quantizes the network in place so that its linears take the bits, or lose what the quantizer allows.

    With a loss to aim at, some samples are held out for it. ValueError for `one_format`: some inputs stay float.
    """

    quantizer: RDOQ
    network: GradientNetwork

    def __init__(
        self,
        network: GradientNetwork,
        quantizer: RDOQ,
        samples: Sequence[Sample],
        dtype: torch.dtype | None = None,
        *,
        one_format: bool = False,
    ) -> None:
        if one_format:
            raise ValueError("one_format=true: quant=rdoq keeps some inputs float, in a format of their own")
        kept = len(samples) - count_held_out(quantizer, len(samples))
        super().__init__(network, quantizer, samples[:kept], dtype)
        self.held_out = samples[kept:]
        # for what is measured; what becomes the model has its own, which knows whether memory is short
        self.room = Room(BESIDE, network.room.folder, scarce=False)
        self._floats: dict[str, Tensor] = {}
        self._biases: dict[str, Tensor | None] = {}
        self._teacher: Teacher
        self._token_weights: dict[str, Tensor] = {}
        self._first: dict[str, str] = {}  # linear -> the first that reads the same input
        self._gradient_parts = 1  # through which gradients are carried
        self._calibrated = False

    @torch.no_grad()
    def quantize(self, remember: Remember = call, progress: Progress = silent) -> None:
        """Replace every selected linear by its integers."""
        if not self.samples:
            raise ValueError("what errors cost is measured on calibration samples, and there are none")
        quantizer, selected = self.quantizer, self.select()
        folds: list[Fold] = []
        if quantizer.folds:
            folds, places = find_folds(self.network, partial(self.network.glance, self.samples[0]), selected)
            asked = "columns" if quantizer.smooth_alpha is None else "smooth_alpha"
            self.notes += skipped(f"{asked}={getattr(quantizer, asked)}", places)
        whole, parts = quantizer.target_file_bits is not None, self._parts
        alike = quantizer.importance == MOMENTS
        statistics = measure(
            self.network, selected, self.samples, parts, self.room, remember, progress, lookups=whole, alike=alike,
            journal=self.journal,
        )  # fmt: skip
        self._gradient_parts = statistics.parts
        states = [self.room.keep(one) for one in statistics.states(len(self.samples))]
        self._teacher = teacher(self.network, self.samples, states, selected)
        smooth_inputs(self.network, folds, statistics, quantizer.standard, progress, self.journal)
        for name in selected:
            self._floats[name], self._biases[name] = self.network.affine(name)
        self._token_weights, self._first = statistics.token_weights(), statistics.first
        factors = factored(self.network, statistics, quantizer, self.room, self.journal)
        tables = Tables(self.network, self.layers, self.samples, whole)
        self.notes += tables.notes
        add_costs = partial(tables.add_costs, factors, statistics, self._teacher, damping=quantizer.damping)
        bits, every = aimed_at(quantizer, self.network.model, self._floats, tables.weights), range(len(self.samples))
        weights = self._floats | tables.weights
        rounding = Rounding(quantizer, weights, factors, self.network.room, progress, self.journal)
        if quantizer.measured_prompts and quantizer.grid is None:
            chosen = every[:: math.ceil(len(every) / quantizer.measured_prompts)]
            # rows whose tokens come in what is measured are finer than those that other texts will need
            add_costs(sorted({*every} - {*chosen}) or every)
            self._correct(rounding, tables, chosen, remember, progress)
        add_costs(every)
        del statistics, add_costs
        if quantizer.target_kl is not None:
            self._meet_loss(rounding, quantizer.target_kl, progress)
        else:
            quantized = rounding.at_bits(bits) if bits else rounding.at(None)
            del rounding, factors, weights  # memory that tuning needs
            self.journal.forget(FACTORS)
            tables.install({name: quantized.pop(name) for name in tables.weights})
            self._quantize_tables()
            self._install(quantized, progress)
        self._floats.clear()
        self._leave_floats()

    @torch.no_grad()
    def calibrate(self, progress: Progress = silent) -> list[Layer]:
        """Fix every input grid, then give other inputs to those that lose most on theirs."""
        ranges = dict(self._ranges)
        if not self._calibrated and ranges:
            super().calibrate(progress)
            self._leave_worst_inputs({name: one for name, one in ranges.items() if one.reached})
            self._renew_notes()
        self._calibrated = True
        return list(self.layers.values())

    def _correct(
        self, rounding: Rounding, tables: Tables, chosen: Sequence[int], remember: Remember, progress: Progress
    ) -> None:
        """Correct what errors are estimated to cost by what a first rounding loses on samples of `chosen` numbers.

        Whatever the size asked for, that one has BITS, and what comes after it makes no difference to it.
        """

        def lost(rounded: dict[str, QuantizedWeight]) -> dict[str, float]:
            known = {name: weight for name, weight in self._floats.items() if name in rounding.factors}
            linears = {name: AttributedLinear(rounded[name], one, self._biases[name]) for name, one in known.items()}
            teacher, parts = self._teacher.of(chosen), self._gradient_parts
            shares = measured_shares(self.network, linears, teacher, parts, self.room, progress, self.journal)
            return shares | {name: tables.share(name, rounded[name], teacher) for name in tables.weights}

        what = replace(self.quantizer.standard, tune_rate=0.0, fallback=Fallback())
        rounding.correct(BITS, lost, self.room, partial(remember, part=f"corrections of {what}"))
        self.journal.forget(SHARES)

    def _meet_loss(self, rounding: Rounding, target: float, progress: Progress) -> None:
        """Round at the slope where the whole quantized model loses `target` on the samples held out."""
        held_out = HeldOut(self.network, self.held_out, self._gradient_parts, self.room)
        self.journal = rounding.journal = Journal()  # which does not tell one try from another
        self._quantize_tables()

        def loss_at(level: float) -> float:
            self._calibrated = False
            self._install(rounding.at(level), progress)
            self.calibrate()
            return held_out.loss()

        meet(loss_at, rounding.first_level(BITS), target)

    def _install(self, weights: dict[str, QuantizedWeight], progress: Progress) -> None:
        """Put quantized linears in the places of the float ones, or of those of another try."""
        dtypes = {name: self.dtype or self._floats[name].dtype for name in weights}
        for name, quantized in weights.items():
            _note(self.layers[name], self._floats[name], quantized)
            self.room.release([self._floats[name], quantized.values])
        if self.quantizer.tune_rate:
            weights = self._tuned(weights, progress)
        for name, quantized in weights.items():
            linear = quantized_linear(self.quantizer.quant_type, quantized, self._biases[name], dtypes[name])
            self._put(name, quantized, linear)

    def _tuned(self, weights: dict[str, QuantizedWeight], progress: Progress) -> dict[str, QuantizedWeight]:
        """The weights with steps tuned on the samples."""
        linears = {}
        for name, quantized in weights.items():
            linears[name] = TunedLinear(quantized, self._biases[name])
            self.network.replace(name, linears[name])
            if self.quantizer.target_kl is None:
                del self._floats[name]
        if not self._floats:  # there are no further tries
            self._leave_floats()
        rate, parts = self.quantizer.tune_rate, self._gradient_parts
        factors = tuned(self.network, linears, self._teacher, rate, parts, self.room, progress, self.journal)
        return _stretched(weights, factors, self.quantizer)

    def _leave_worst_inputs(self, ranges: dict[str, InputRange]) -> None:
        """Other inputs for the linears that lose most on a grid, as many as the quantizer allows."""
        walk = Walk(self.network, self.samples[:FLOAT_SAMPLES], self._parts, watched=ranges)
        tokens = [*map(len, self._teacher.states)]
        losses = partial(input_losses, self.network, self._token_weights, walk, tokens)
        leave_worst_inputs(self.network, ranges, self.layers, self._first, self.quantizer.fallback, losses)


def _note(layer: Layer, weight: Tensor, rounded: QuantizedWeight) -> None:
    """What became of a weight, in its row of the table."""
    layer.quantized, layer.float_inputs = True, False
    layer.sqnr_db, layer.clipped = weight_error(weight, rounded)


def _stretched(
    weights: Mapping[str, QuantizedWeight], factors: Mapping[str, Tensor], quantizer: RDOQ
) -> dict[str, QuantizedWeight]:
    """The weights on steps times these factors, which are short where the whole file has a target."""
    steps = {name: one.scale * factors[name] for name, one in weights.items()}
    if quantizer.target_file_bits is not None:
        steps = {name: short(step) for name, step in steps.items()}
    return {name: QuantizedWeight(one.values, steps[name]) for name, one in weights.items()}
