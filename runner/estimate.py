"""What a run would take, from its configuration, the model's outline and the jobs that finished before.

Sizes follow from the shapes of the linears and the method's formula on gaussian weights, or from a finished job with
the same method and model. Time and memory come from what finished jobs left in the cache; memory that none tells is
estimated from what was measured on models of 0.1 to 0.5 billion parameters.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from slimrun.ops.calibration.rdoq import work as rdoq
from slimrun.ops.format.linear import FLOAT
from slimrun.ops.model.base import Outline
from slimrun.runner.cache import Cache
from slimrun.runner.experiment import Experiment
from slimrun.runner.folder import RESULTS, read_json
from slimrun.runner.forecast import Forecast
from slimrun.runner.result import Result, covered_share

PROCESS_BYTES = 620_000_000  # interpreter and libraries
INT8_COPIES = 1.2  # of the int8 weights at the peak
WORK_BYTES = 24  # of a weight of the largest linear while it is quantized
REPORT_BYTES = 1_000_000  # tables, pictures, outputs of a run
SCALE_BITS = 32  # a row's step
EXPONENT_BITS = 5.3  # of the 8 of a number that coding saves, where floats are coded too
TABLE_BITS = 7.4  # of a number of quantized embeddings: gaussian rows of 576 to 4096, the largest on 127
ROW_BYTES = 8  # its deq_scale and quant_bias in the bundle
NAME_BYTES = 1820  # of a linear's tensors in header, description and manifest

KINDS: dict[str, Any] = {"str": str, "int": int, "float": int | float, "dict[str, str]": dict}  # in a record's file


@dataclass(frozen=True)
class Record:
    """A finished job, described so that one like it can be told."""

    host: str
    device: str
    model: str
    quant: str  # the method with its knobs
    compress: str
    tasks: dict[str, str]  # name -> protocol
    seconds: float
    bits_per_weight: float
    peak_rss_bytes: int
    folder: str

    @property
    def method(self) -> str:
        """The method without its knobs."""
        return self.quant.partition("(")[0]


def described(experiment: Experiment) -> dict[str, Any]:
    """The fields of its record that are known before a job runs."""
    return {
        "host": platform.node(),
        "device": experiment.device.name,
        "model": repr(experiment.model),
        "quant": repr(experiment.quant),
        "compress": repr(experiment.compress),
        "tasks": experiment.protocols(),
    }


def facts(experiment: Experiment, result: Result) -> dict[str, Any]:
    """The record of a finished job, for `Cache.note_finished`."""
    record = Record(
        seconds=sum(float(value) for key, value in result.metrics.items() if key.startswith("time/")),
        bits_per_weight=float(result.metrics["size/bits_per_weight"]),
        peak_rss_bytes=int(result.metrics["memory/peak_rss_bytes"]),
        folder=str(result.weight_file.parents[1].resolve()),
        **described(experiment),
    )
    return asdict(record)


def recorded(cache: Cache) -> list[Record]:
    """The records of the cache, the oldest first."""
    kinds = {field.name: KINDS[str(field.type)] for field in fields(Record)}
    jobs = cache.finished_jobs()
    whole = [job for job in jobs if all(isinstance(job.get(name), kind) for name, kind in kinds.items())]
    return [Record(**{name: job[name] for name in kinds}) for job in whole]


@dataclass(frozen=True)
class Estimate:
    """What one job would take."""

    experiment: Experiment
    outline: Outline

    @cached_property
    def recorded(self) -> list[Record]:
        """All recorded runs."""
        return recorded(self.experiment.cache)

    @cached_property
    def own(self) -> dict[str, Any]:
        """What its own record would say."""
        return described(self.experiment)

    @cached_property
    def alike(self) -> list[Record]:
        """Recorded runs of this model with these tasks on this device and machine."""
        return [record for record in self.recorded if self.agrees(record, "host", "device", "model", "tasks")]

    def agrees(self, record: Record, *keys: str) -> bool:
        """Whether a recorded run says the same under these keys."""
        return all(getattr(record, key) == self.own[key] for key in keys)

    @cached_property
    def same_method(self) -> list[Record]:
        """The records of the same method, whatever its knobs."""
        return [record for record in self.alike if record.method == type(self.experiment.quant).__name__]

    @cached_property
    def covered(self) -> dict[str, tuple[int, int]]:
        """The linears that the method covers; nothing when it quantizes nothing."""
        if self.experiment.quant.quant_type == FLOAT:
            return {}
        return self.experiment.covered(self.outline)

    @property
    def weights(self) -> int:
        """How many weights they have."""
        return sum(map(prod, self.covered.values()))

    @property
    def covered_share(self) -> float:
        """Their share of the weights of linears and experts."""
        return covered_share(self.covered, self.outline)

    @property
    def falling_back(self) -> int:
        """How many of them will stay float by rank."""
        return min(self.experiment.quant.fallback_level, len(self.covered))

    @cached_property
    def fingerprint(self) -> str | None:
        """Fingerprint of the float weights, None where they would have to be read for it."""
        experiment = self.experiment
        return experiment.framework.fingerprint(experiment.model, read=False)

    @cached_property
    def done(self) -> str:
        """Folder of the same job, finished before and still there; "" when there is none."""
        if self.fingerprint is None:
            return ""
        identity = self.experiment.identity()
        folder = self.experiment.cache.finished(identity)
        results = (read_json(folder / RESULTS) if folder else None) or {}
        return str(folder) if results.get("status") == "ok" and results.get("config_hash") == identity else ""

    @cached_property
    def bits(self) -> tuple[float, bool]:
        """(bits a weight, whether a recorded run tells them)."""
        for record in reversed(self.recorded):
            if self.agrees(record, "model", "quant", "compress"):
                return record.bits_per_weight, True
        coded = bool(self.experiment.compress.container)
        stored = sum(
            prod(shape) * (min(8.0, self.experiment.quant.expected_bits(shape)) if coded else 8.0)
            + SCALE_BITS * shape[0]
            for shape in self.covered.values()
        )
        share = self.falling_back / max(1, len(self.covered))
        return (1 - share) * stored / max(1, self.weights) + share * 8 * self.width, False

    @property
    def width(self) -> float:
        """Bytes of a float weight."""
        return self.outline.float_bytes / self.outline.parameters

    @property
    def tables(self) -> int:
        """Numbers of embeddings and output head that are quantized."""
        return self.outline.tables if self.experiment.quant.embeddings else 0

    @property
    def kept_numbers(self) -> int:
        """Numbers that stay float."""
        return self.outline.parameters - self.weights - self.tables

    @property
    def compressed_bytes(self) -> int:
        """What the covered weights take on disk."""
        return round(self.bits[0] * self.weights / 8)

    @property
    def artifact_bytes(self) -> int:
        """What the bundle takes on disk: coded weights, grids, what stays float, config and tokenizer."""
        rows = sum(rows for rows, _ in self.covered.values())
        saved = EXPONENT_BITS / 8 if self.weights and getattr(self.experiment.compress, "floats", False) else 0.0
        kept_float = round(self.kept_numbers * (self.width - saved))
        folder = self.folder
        beside = [] if folder is None else [file for file in folder.iterdir() if file.suffix in {".json", ".model"}]
        described = sum(file.stat().st_size for file in beside)
        if (asked := getattr(self.experiment.quant, "target_file_bits", None)) is not None:
            return int(asked * self.outline.parameters / 8) + described
        named = NAME_BYTES * len(self.covered) + described
        coded = TABLE_BITS if self.experiment.compress.container else 8.0
        return self.compressed_bytes + ROW_BYTES * rows + kept_float + named + round(self.tables * coded / 8)

    @property
    def folder(self) -> Path | None:
        """Where the model's files lie."""
        return self.experiment.model.folder()

    @property
    def download_bytes(self) -> int:
        """What has to be fetched and converted first, below `cache.dir`."""
        fetched = self.experiment.model.download_bytes
        return fetched + self.outline.float_bytes if fetched and self.folder is None else 0

    @cached_property
    def memory(self) -> tuple[int, bool]:
        """(peak bytes of main memory, whether a recorded run tells them)."""
        if self.same_method:
            return max(record.peak_rss_bytes for record in self.same_method), True
        room, floats = self.experiment.device.room, self.outline.float_bytes
        quantizing = min(floats, room) + self.least_memory  # when few weights are integers yet
        quantized = min(floats + INT8_COPIES * self.weights, room) + PROCESS_BYTES
        return round(max(quantizing, quantized)), False

    @property
    def least_memory(self) -> int:
        """Bytes without which it cannot run: the process, and what quantizing the largest linear takes."""
        linear = WORK_BYTES * max(map(prod, self.covered.values()), default=0)
        factored = rdoq.Work(self.covered, 0).memory if self.experiment.quant.needs_gradients else 0
        return PROCESS_BYTES + max(linear, factored)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of files at most while it runs: notes to resume by, what memory has no room for, what rdoq measures."""
        measured = rdoq.Work(self.covered, 0).disk if self.experiment.quant.needs_gradients else 0
        return self.weights + self.overflow_bytes + measured

    @property
    def overflow_bytes(self) -> int:
        """Bytes of what is made of the weights that memory has no room for."""
        made = self.weights + self.compressed_bytes + self.weights  # integers, coded, and decoded again
        return round(max(0.0, made - self.experiment.device.room))

    @cached_property
    def forecast(self) -> dict[str, float]:
        """Seconds by stage, from this machine's measured speed; ValueError where nothing tells them."""
        known = self.fingerprint is not None
        missing = self.experiment.baselines_missing(str(self.fingerprint)) if known else list(self.experiment.task)
        sizes = self.kept_numbers * self.width, self.disk_bytes, self.overflow_bytes
        return Forecast(self.experiment, self.outline, self.covered, missing, *sizes).stages()

    @property
    def seconds(self) -> list[float]:
        """How long recorded runs like this one took; those of other methods when there is none of its own."""
        return [record.seconds for record in self.same_method or self.alike]

    @property
    def disk_bytes(self) -> int:
        """Everything the job leaves in its output folder."""
        float_bytes = round((self.outline.parameters - self.weights) * self.width)
        return self.artifact_bytes + len(self.experiment.export) * (self.weights + float_bytes) + REPORT_BYTES
