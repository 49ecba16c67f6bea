"""How long the stages of a job take on this machine, from its work and what was measured of the machine's speed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slimrun.ops.calibration.base import FLOAT_SAMPLES, Arrays
from slimrun.ops.calibration.rdoq import work as rdoq
from slimrun.ops.format.linear import FLOAT
from slimrun.ops.format.products import for_products
from slimrun.ops.memory import free_memory
from slimrun.ops.model.base import Outline
from slimrun.ops.quant.rdoq import RDOQ
from slimrun.runner import speed
from slimrun.runner.experiment import Experiment
from slimrun.runner.workload import Guess, work_of

AROUND = 1.25  # what attention, norms and activations take beside the products
CHAIN = 13  # products number by number that a pass of rdoq takes beside the products, for each number of a linear
FILED = 1.6  # times as long as making factors and rounding take both where moments, factors and integers lie in files
SCARCE = 2  # times as long as in memory takes rounding or coding where what is freed goes back at once, to be cleared
WIDEST = 4096  # columns of a moment whose factor is worth the time to make it
TOLD = 2  # passes of a first text in which a model's blocks are told: as a whole, and part by part
LOOKED_THROUGH = 2  # times that loading reads what a file holds
PROMPTS, STEPS = "calibration prompts", "steps of "  # no names of tasks


@dataclass(frozen=True)
class Forecast:
    """What one job would take, stage by stage."""

    experiment: Experiment
    outline: Outline
    covered: dict[str, tuple[int, int]]
    missing: list[str]  # tasks whose float outputs are not known
    kept: float  # bytes of numbers that stay floating-point, before they are coded,
    written: int  # bytes that are left on the disk,
    overflow: int  # and those that memory has no room for

    def stages(self) -> dict[str, float]:
        """Seconds by stage. ValueError for a method whose time nothing here tells."""
        quantizer = self.experiment.quant
        if self.experiment.device.type != "cpu" or not self.experiment.framework.gives_gradients:
            raise ValueError("only PyTorch on the processor is measured before a run")
        if quantizer.needs_gradients and not isinstance(quantizer, RDOQ):
            raise ValueError(f"{type(quantizer).__name__} takes what recorded runs alone tell")
        weights, kind = sum(map(prod, self.covered.values())), quantizer.quant_type
        _, columns = max(self.covered.values(), key=prod, default=(1, 1))
        read, work = self._read(), self._work()
        seconds = {"load": LOOKED_THROUGH * self.outline.float_bytes * read, "quantize": 0.0, "calibrate": 0.0}
        cached = self._streams and self.outline.float_bytes <= free_memory()
        again = self._read() if cached else read  # the system keeps what was read once
        seconds["evaluate"] = self._evaluated(work, list(self.experiment.task), kind, again)
        seconds["evaluate"] += self._evaluated(work, self.missing, FLOAT, again)
        if not self.covered:
            return seconds
        if isinstance(quantizer, RDOQ):
            seconds["quantize"] = self._rate_distortion(quantizer, work[PROMPTS])
        else:
            seconds["quantize"] = weights * speed.rounding(quantizer, columns) * self._scarce
        walk = self.outline.float_bytes * again if self._streams else 0.0  # beside its passes
        seconds["quantize"] += walk
        if quantizer.fallback_level or quantizer.input_observer == "auto":
            seconds["quantize"] += self._passes(work[PROMPTS][:FLOAT_SAMPLES], FLOAT) + walk
        if quantizer.smooths_norms:
            seconds["quantize"] += self._passes(work[PROMPTS], FLOAT) + walk
        if quantizer.fallback_level or quantizer.smooths_norms or quantizer.input_observer:
            first = self._passes(work[PROMPTS][:1], FLOAT) + walk
            seconds["quantize"] += (1 + TOLD) * first  # one to see which linears run
        if quantizer.input_observer:
            seconds["calibrate"] = self._passes(work[PROMPTS], kind, self._walked)
        encoded, decoded = speed.coding(self.experiment.compress, quantizer, columns)
        numbers, again_numbers = speed.coding_numbers(self.experiment.compress, self._dtype)
        write, back = speed.disk(self.experiment.cache.path)
        seconds["quantize"] += self.overflow * write
        seconds |= {"compress": weights * encoded, "write": self._scarce * self.kept * numbers + self.written * write}
        told = self._scarce * weights * decoded + self.written * back
        compared = (weights + self.kept) * back
        return seconds | {"decode": told + self._scarce * self.kept * again_numbers + compared, "reload": told}

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.outline.dtype)
        return dtype

    @property
    def _scarce(self) -> int:
        """How many times as long rounding and coding take as where memory is plenty."""
        return SCARCE if self._streams else 1

    @property
    def _streams(self) -> bool:
        """Whether memory has no room for the weights."""
        return self.outline.float_bytes > self.experiment.device.room

    def _evaluated(self, work: Arrays, tasks: list[str], kind: str, read: float) -> float:
        """One model's passes in tasks; where memory has no room for it, it is told and read block by block too."""
        seconds = sum(self._passes(work[name], kind) for name in tasks)
        if not tasks or not self._streams:
            return seconds
        weights = self.outline.float_bytes if kind == FLOAT else sum(map(prod, self.covered.values()))
        walks = TOLD + len(tasks) + sum(int(work[STEPS + name]) for name in tasks)
        return seconds + TOLD * self._passes(work[tasks[0]][:1], kind) + walks * weights * read

    def _rate_distortion(self, quantizer: RDOQ, tokens: npt.NDArray[Any]) -> float:
        """Statistics, factors, roundings, corrections and tuning: by their products, and the numbers beside."""
        work = rdoq.work_of(quantizer, self.covered, tokens.tolist())
        fast, columns = for_products(torch.zeros(1)).dtype, min(WIDEST, max(work.linears.values(), key=prod)[1])
        seconds = work.products / speed.operations(fast)
        seconds += work.conversions * speed.converting() + CHAIN * work.states * speed.elementwise()
        factors = work.factors / speed.operations(torch.float32) + work.moments * speed.factoring(columns)
        rounded = work.roundings * work.weights * speed.feeding_back(columns)
        return seconds + FILED * (factors + rounded)

    def _work(self) -> Arrays:
        """Tokens of each pass, by task and of calibration, and steps by task: counted once, since it takes seconds."""
        experiment = self.experiment
        key, missing = experiment.model.key(), bool(self.outline.missing)

        def counted() -> Arrays:
            reader = (None if missing else experiment.model.reader()) or Guess(experiment.model.sketch())
            prompts = [len(reader.encode(text)) for text in experiment.calibration.texts()]
            counts = {PROMPTS: np.minimum(prompts, experiment.calibration.length)}
            for name, task in experiment.task.items():
                work = work_of(task, reader)
                counts[name] = np.array(work.read + work.written)
                counts[STEPS + name] = np.array(len(work.written))
            return counts

        if key is None:
            return counted()
        what = {"kind": "tokens and steps of tasks", "model": experiment.model.name}
        calibration = experiment.calibration
        known = (missing, calibration.texts(), calibration.length, experiment.protocols())
        return experiment.cache.arrays(what, key, *known)(counted)

    @property
    def _walked(self) -> dict[str, tuple[int, int]]:
        """Linears that calibration walks through: those of blocks, which are numbered, or all where it needs more."""
        walked = {name: shape for name, shape in self.outline.linears.items() if any(map(str.isdigit, name.split(".")))}
        return walked if walked.keys() >= self.covered.keys() else self.outline.linears

    def _passes(self, tokens: npt.NDArray[Any], kind: str, linears: dict[str, tuple[int, int]] | None = None) -> float:
        counts: Counter[int] = Counter(tokens.tolist())
        through = self.outline.linears if linears is None else linears
        return sum(count * self._pass(one, kind, through) for one, count in counts.items())

    def _pass(self, tokens: int, kind: str, linears: dict[str, tuple[int, int]]) -> float:
        """One pass of so many tokens through these linears, those of the method in this format."""
        shapes = Counter((shape, name in self.covered) for name, shape in linears.items())
        seconds: float = sum(
            count * speed.product(shape, tokens, self._dtype, kind if covered else FLOAT)
            for (shape, covered), count in shapes.items()
        )
        return AROUND * seconds

    def _read(self) -> float:
        """Seconds a byte of the weight files; where there are none yet, of a file that has just been written."""
        folder = self.experiment.model.folder()
        files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")) if folder else []
        return speed.reading(files[0]) if files else speed.disk(self.experiment.cache.path)[1]
