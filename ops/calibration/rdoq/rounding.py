"""Rounding all weights at one slope of loss against bits, and the slope at which they take the bits asked for.

Each try rounds linear after linear: one weight and one factor are at hand, integers lie where the room has place.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from slimrun.ops.calibration.base import Arrays, Progress, Remember, call
from slimrun.ops.calibration.journal import Journal, Results, Tensors
from slimrun.ops.calibration.search import PASSES
from slimrun.ops.compress.native import Native
from slimrun.ops.format.arithmetic import INT8_LEVELS, QuantizedWeight
from slimrun.ops.format.weights import round_to_grid
from slimrun.ops.memory import Room, give_back
from slimrun.ops.quant.feedback import Importance, code_lengths, feedback, guarded, row_steps
from slimrun.ops.quant.rdoq import RDOQ, SCALE_BITS

from .attribution import corrections
from .factors import Factors
from .file_size import short

log = logging.getLogger(__name__)

TOLERANCE = 0.001  # of the bits that a search may miss,
LAST_TOLERANCE = 0.01  # its last try: small models change by leaps
TRIED = "tried"  # the kind of notes of the rounding that is measured
EVERY = 8  # of so many rows one is rounded to find the level, where all would take long:
MANY = 2**24  # weights from here on
GIVE_BACK = 8  # linears between two returns of memory


class Rounding:
    """Rounds the weights at a slope; `factors` has what errors in them cost, `room` the integers."""

    def __init__(
        self,
        quantizer: RDOQ,
        weights: Mapping[str, Tensor],
        factors: Factors,
        room: Room,
        progress: Progress,
        journal: Journal | None = None,
    ) -> None:
        self.quantizer = quantizer
        self.weights = weights
        self.factors = factors
        self.room = room
        self.progress = progress
        self.journal = journal or Journal()
        self.count = sum(weight.numel() for weight in weights.values())
        self.overhead = SCALE_BITS * sum(weight.shape[0] for weight in weights.values()) / self.count
        self._lengths: dict[str, Tensor] = {}  # code lengths of the last rounding
        self._spreads: dict[str, Tensor] = {}  # of each row of a weight
        self._excess = 0.0  # bits a weight that a rounding takes beyond what gaussian rows would,
        self._of_some = 0.0  # and beyond what some of its rows take

    def learned(self) -> Tensors:
        """What roundings so far say to the next one."""
        lengths = {f"lengths/{name}": lengths for name, lengths in self._lengths.items()}
        return {**lengths, **_number("excess", self._excess), **_number("of some", self._of_some)}

    def learn(self, learned: Mapping[str, Tensor]) -> None:
        """Know what `learned` gave."""
        self._excess, self._of_some = float(learned["excess"]), float(learned["of some"])
        lengths = {key.removeprefix("lengths/"): one for key, one in learned.items() if key.startswith("lengths/")}
        self._lengths = {name: one.clone() for name, one in lengths.items()}

    def correct(
        self,
        target: float,
        lost: Callable[[dict[str, QuantizedWeight]], Mapping[str, float]],
        room: Room,
        remember: Remember = call,
    ) -> None:
        """Correct what errors cost by what a first rounding, to about `target` bits, is seen to have `lost` by weight.

        Its integers lie in the room, and `first_level` knows better then. What was found goes through `remember`.
        """

        def tried() -> Tensors:
            level = float(self.journal.known("level", lambda: _number("level", self.first_level(target)))["level"])
            quantized = self.at(level, room, TRIED)
            reached = self.bits([weight.values for weight in quantized.values()])
            self._excess = reached - target
            if self.count >= MANY:
                some = [self._some(weight.values) for weight in quantized.values()]
                self._of_some = reached - self.bits(some)
                del some
            log.info("rounding to measure: level %.4g gives %.4f bits a weight", level, target + self._excess)
            losses = lost(quantized)
            self._lengths.clear()  # codes of another size are of other lengths
            known = [losses.get(name, math.nan) for name in self.weights]
            return {**self.learned(), "lost": torch.tensor(known, dtype=torch.float64)}

        def found() -> Arrays:
            return {name: one.numpy() for name, one in self.journal.known("corrected", tried).items()}

        known = {name: torch.as_tensor(array) for name, array in remember(found).items()}
        self.journal.forget(TRIED)
        self.learn(known)
        losses = {name: one for name, one in zip(self.weights, known["lost"].tolist()) if not math.isnan(one)}
        self.factors.corrections = corrections(losses, {name: self.weights[name].numel() for name in losses})

    def at(self, level: float | None, room: Room | None = None, kind: str = "rounded") -> dict[str, QuantizedWeight]:
        """Every weight rounded on steps of this level, None: on those of the quantizer's grid; integers in the room.

        Those that the journal has of this kind are not rounded again.
        """
        quantized, room, results = {}, room or self.room, Results(self.journal, kind)
        for done, (name, weight) in enumerate(self.weights.items()):
            rounded = results.get(name, partial(self._round, name, weight, level))
            quantized[name] = QuantizedWeight(room.keep(rounded["values"]), rounded["scale"])
            if "lengths" in rounded:
                self._lengths[name] = rounded["lengths"]
            self.factors.room.release([weight])
            self.progress(done + 1, len(self.weights), "rounding")
            if done % GIVE_BACK == 0:  # the integers that stay lie between what is freed
                give_back()
        if self.journal.begun:  # the last of them rest on code lengths that will be forgotten
            results.note()
        return quantized

    def at_bits(self, target: float) -> dict[str, QuantizedWeight]:
        """Every weight rounded so that all of them, coded, take `target` bits a weight; ValueError when they cannot."""

        def begun() -> Tensors:
            level = self.first_level(target)
            if self.count >= MANY:
                level = self._nearer(level, target)
            return {**self.learned(), "attempt": torch.tensor(0), **_number("level", level)}

        known = self.journal.known("search", begun)
        self.learn(known)
        level = float(known["level"])
        for attempt in range(int(known["attempt"]), PASSES):
            quantized = self.at(level, kind=f"rounded.{attempt}")
            reached = self.bits([weight.values for weight in quantized.values()])
            log.info("rounding %d: level %.4g gives %.4f bits a weight", attempt + 1, level, reached)
            if abs(reached - target) <= (TOLERANCE if attempt < PASSES - 1 else LAST_TOLERANCE) * target:
                return quantized
            del quantized  # before the next ones come
            level *= 2 ** (reached - target)  # twice the step is a bit less
            if self.journal.begun:
                next_one = {"attempt": torch.tensor(attempt + 1), **_number("level", level)}
                self.journal.keep_state("search", {**self.learned(), **next_one})
                self.journal.forget(f"rounded.{attempt}")
        raise ValueError(
            f"{self.quantizer.asked} is out of reach: {PASSES} roundings end at {reached:.3f} bits a weight, not at "
            f"{target:.3f} (every row keeps its largest weight and stores a step)"
        )

    def _nearer(self, level: float, target: float) -> float:
        """A level nearer to the target, by what some rows of each weight take at this one."""
        some = []
        for done, (name, weight) in enumerate(self.weights.items()):
            rounded = self._round(name, weight, level, EVERY)
            some.append(self.room.keep(rounded["values"]))
            if "lengths" in rounded:
                self._lengths[name] = rounded["lengths"]
            self.factors.room.release([weight])
            self.progress(done + 1, len(self.weights), "level")
        reached = self.bits(some) + self._of_some
        log.info("rounding of some rows: level %.4g gives about %.4f bits a weight", level, reached)
        return float(level * 2 ** (reached - target))

    def _some(self, values: Tensor) -> Tensor:
        """One in so many of the rows of these integers, which then leave memory where they lie in a file."""
        rows = self.room.keep(values[::EVERY].contiguous())
        self.room.release([values])
        return rows

    def bits(self, weights: Sequence[Tensor]) -> float:
        """Coded bits a weight of such integers, with the steps of all rows."""
        codec = Native()

        def coded(values: Tensor) -> int:
            size = sum(part.nbytes for part in codec.encode(values.cpu().numpy()).values())
            self.room.release([values])
            return size

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            size = sum(pool.map(coded, weights))
        return 8 * size / sum(weight.numel() for weight in weights) + self.overhead

    def first_level(self, target: float) -> float:
        """The level at which gaussian rows would have the target's entropy, or as a rounding that was tried says."""
        bits = 0.0
        for done, (name, weight) in enumerate(self.weights.items()):
            if name in self.factors:
                if name not in self._spreads:
                    self._spreads[name] = weight.detach().float().std(dim=1, correction=0).clamp_min(1e-30)
                spread = self._spreads[name]
                slope = self.factors.slope(name).clamp_min(1e-30)
                bits += float((spread * slope.sqrt()).log2().sum()) * weight.shape[1]
                self.factors.room.release([weight])
            self.progress(done + 1, len(self.weights), "factors")
        gaussian = 0.5 * math.log2(2 * math.pi * math.e)
        return float(2 ** (bits / self.count + gaussian - (target - self.overhead) + self._excess))

    def _round(self, name: str, weight: Tensor, level: float | None, every: int = 1) -> Tensors:
        """`values` and `scale` of a weight, or of one in so many of its rows, and the code `lengths` of its values."""
        quantizer, weight = self.quantizer, weight.detach()[::every].float()
        if name not in self.factors:  # no sample came by
            plain = quantizer.quantize_weight(weight)
            return {"values": plain.values, "scale": plain.scale}
        known: Importance = self.factors[name]
        if every > 1:
            known = replace(known, rows=known.rows[::every], given=known.slope[::every])
        if level is None:
            steps = quantizer.quantize_weight(weight).scale.expand(weight.shape[0], 1).contiguous()
            if quantizer.levels == INT8_LEVELS:  # smoothing may have made outliers that its steps would clip
                steps = guarded(steps, weight)
            level = math.inf
        else:
            steps = row_steps(known.slope, weight, level)
            if quantizer.target_file_bits is not None:
                steps = short(steps)
        bits = self._lengths.get(name)
        if bits is None:
            first = EVERY // every if self.count >= MANY else 1  # enough to tell lengths by
            bits = code_lengths(round_to_grid(weight[::first], steps[::first]))
        values = feedback(weight, steps, known, bits, quantizer.price, level, quantizer.levels)
        self.factors.leave(name)
        return {"values": values, "scale": steps, "lengths": code_lengths(values)}


def _number(name: str, number: float) -> Tensors:
    return {name: torch.tensor(number, dtype=torch.float64)}
