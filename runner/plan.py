"""`plan=true`: what a run or every job of a multirun would do, and whether it can; no weight is loaded.

Sizes follow from the shapes of the linears and the method's formula on gaussian weights, or from a finished job with
the same method and model. Time and memory come from what finished jobs left in the cache; memory that none tells is
estimated from what was measured on models of 0.1 to 0.5 billion parameters.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch

from ops.framework.base import Outline
from runner.cache import Cache
from runner.config import ConfigError
from runner.display import print_table
from runner.experiment import PINNED_CALIBRATION, Experiment
from runner.pareto import distinct
from runner.result import Result, read_json

DOWNLOAD_BYTES = 93_000_000  # the package of the embedded model
PROCESS_BYTES = 620_000_000  # interpreter and libraries
FLOAT_COPIES = 2.0  # of the float weights at the peak, the pages of their mapped file being one
INT8_COPIES = 1.4  # of the int8 weights
REPORT_BYTES = 1_000_000  # tables, pictures, outputs of a run
SCALE_BITS = 32  # a row's step
ROW_BYTES = 8  # its deq_scale and quant_bias in the bundle
SOURCES = {True: " (recorded)", False: " (estimated)"}
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


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
        **described(experiment),
    )
    return asdict(record)


def recorded(cache: Cache) -> list[Record]:
    """The records of the cache, the oldest first."""
    names = [field.name for field in fields(Record)]
    return [Record(**{name: job[name] for name in names}) for job in cache.finished_jobs() if job.keys() >= set(names)]


@dataclass(frozen=True)
class Plan:
    """What one job would do, from its configuration, the model's outline and the recorded runs."""

    overrides: list[str]
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
        """Those of them with the same method, whatever its knobs."""
        return [record for record in self.alike if record.method == type(self.experiment.quant).__name__]

    @cached_property
    def covered(self) -> dict[str, tuple[int, int]]:
        """The linears that the method covers; nothing when it quantizes nothing."""
        if self.experiment.quant.quant_type == "FLOAT":
            return {}
        ignored = self.experiment.quant.ignored(list(self.outline.linears))
        return {name: shape for name, shape in self.outline.linears.items() if name not in ignored}

    @property
    def weights(self) -> int:
        """How many weights they have."""
        return sum(map(prod, self.covered.values()))

    @property
    def falling_back(self) -> int:
        """How many of them will stay float by rank."""
        return min(self.experiment.quant.fallback_level, len(self.covered))

    @cached_property
    def fingerprint(self) -> str | None:
        """Of the float weights, unless they would have to be read for it."""
        experiment = self.experiment
        return experiment.framework.fingerprint(experiment.model, experiment.cache.path, experiment.seed, read=False)

    @cached_property
    def done(self) -> str:
        """Folder of the same job, finished before and still there; "" when there is none."""
        if self.fingerprint is None:
            return ""
        identity = self.experiment.identity()
        folder = self.experiment.cache.finished(identity)
        results = (read_json(folder / "results.json") if folder else None) or {}
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
    def compressed_bytes(self) -> int:
        """What the covered weights take on disk."""
        return round(self.bits[0] * self.weights / 8)

    @property
    def artifact_bytes(self) -> int:
        """What the bundle takes on disk: coded weights, grids, what stays float, config and tokenizer."""
        rows = sum(rows for rows, _ in self.covered.values())
        kept_float = round((self.outline.parameters - self.weights) * self.width)
        folder = self.folder
        beside = [] if folder is None else [file for file in folder.iterdir() if file.suffix in {".json", ".model"}]
        return self.compressed_bytes + ROW_BYTES * rows + kept_float + sum(file.stat().st_size for file in beside)

    @property
    def folder(self) -> Path | None:
        """Where the model's files lie."""
        return self.experiment.framework.files(self.experiment.model, self.experiment.cache.path)

    @property
    def download_bytes(self) -> int:
        """What has to be fetched and converted first, below `cache.dir`."""
        missing = self.experiment.model.source == "embedded" and self.folder is None
        return DOWNLOAD_BYTES + self.outline.float_bytes if missing else 0

    @cached_property
    def memory(self) -> tuple[int, bool]:
        """(peak bytes of main memory, whether a recorded run tells them)."""
        if self.same_method:
            return max(record.peak_rss_bytes for record in self.same_method), True
        peak = PROCESS_BYTES + FLOAT_COPIES * self.outline.float_bytes + INT8_COPIES * self.weights
        return round(peak), False

    @property
    def least_memory(self) -> int:
        """Bytes without which it cannot run: the process, and the float weights once."""
        return PROCESS_BYTES + self.outline.float_bytes

    @property
    def seconds(self) -> list[float]:
        """How long recorded runs like this one took; those of other methods when there is none of its own."""
        return [record.seconds for record in self.same_method or self.alike]

    def refusal(self) -> str:
        """Why the float weights do not fit into memory, "" when they do or some may lie elsewhere."""
        device = self.experiment.device
        if device.device_map is not None or self.done:
            return ""
        if device.type != "cpu":
            free, _ = torch.get_device_module(device.type).mem_get_info()
            if self.outline.float_bytes <= free:
                return ""
            return (
                f"the float weights take {size(self.outline.float_bytes)}, {size(free)} are free on "
                f"device={device.name}; take device={device.type}_multi or device=cpu_disk"
            )
        free = free_memory()
        if self.least_memory <= free:
            return ""
        return (
            f"needs {size(self.least_memory)} of memory at least (float weights {size(self.outline.float_bytes)}), "
            f"{size(free)} are free; take device=cpu_disk, or a smaller model"
        )

    @property
    def title(self) -> str:
        """The command."""
        return " ".join(["slimrun", *self.overrides])

    def rows(self) -> list[list[str]]:
        """Everything about the job: (what, how much)."""
        experiment = self.experiment
        kept = [name for name in self.outline.linears if name not in self.covered]
        bits, told = self.bits
        memory, measured = self.memory
        quantized = len(self.covered) - self.falling_back
        return [
            ["read", self.reads()],
            ["calibrate on", self.calibrates()],
            ["evaluate", ", ".join(experiment.task) + self.baselines()],
            ["quantize", f"{quantized} linears of {len(self.outline.linears)} as {experiment.quant.quant_type}"],
            ["keep float", f"{len(kept) + self.falling_back}: {named(kept, self.falling_back)}"],
            ["weights covered", f"{self.weights:,}"],
            ["codec", type(experiment.compress).__name__],
            ["compressed", f"{size(self.compressed_bytes)}, {bits:.2f} bits a weight{SOURCES[told]}"],
            ["disk", size(self.disk_bytes)],
            ["peak memory", size(memory) + SOURCES[measured]],
            ["time", f"{duration(self.seconds)}{self.basis()}"],
            ["device", experiment.device.name],
            ["already done", self.done or self.not_done()],
        ]

    @property
    def disk_bytes(self) -> int:
        """Everything the job leaves in its output folder."""
        return self.artifact_bytes + REPORT_BYTES

    def reads(self) -> str:
        """The model and where it comes from."""
        model = self.experiment.model
        named = f"{model.name}, {size(self.outline.float_bytes)} of float weights"
        if self.download_bytes:
            return f"{named}, fetched first ({size(DOWNLOAD_BYTES)})"
        return f"{named} from {self.folder or model.path}" if model.source != "random" else f"{named}, random"

    def calibrates(self) -> str:
        """The prompts and where they come from."""
        calibration = self.experiment.calibration
        source = calibration.path or ("calibration.prompts" if calibration.prompts else PINNED_CALIBRATION)
        return f"{len(calibration.texts())} prompts of at most {calibration.length} tokens from {source}"

    def baselines(self) -> str:
        """How much of the float model's evaluation is in the cache."""
        if self.fingerprint is None:
            return ""
        missing = self.experiment.baselines_missing(self.fingerprint)
        return f" (float baseline to compute: {', '.join(missing)})" if missing else " (float baselines cached)"

    def basis(self) -> str:
        """What the time rests on."""
        if not self.alike:
            return ": no run of this model with these tasks is recorded on this machine"
        return f" (of {len(self.seconds)} runs{'' if self.same_method else ' with other methods'})"

    def not_done(self) -> str:
        """Why it is not."""
        return "no" if self.fingerprint else "not known: the model's files were not read yet"


Job = tuple[list[str], Plan | ConfigError]  # its overrides, and what is planned or why nothing is


def show(jobs: Sequence[Job], folder: Path, multirun: bool) -> None:
    """Print the plan of one job or of all; ConfigError, with the number, when something cannot run or does not fit."""
    plans = [job for _, job in jobs if isinstance(job, Plan)]
    if multirun:
        show_jobs(jobs)
    else:
        print_table(f"plan: {plans[0].title}", ["", "value"], plans[0].rows())
    labels = distinct([overrides for overrides, _ in jobs])
    reasons = [job.refusal() if isinstance(job, Plan) else str(job) for _, job in jobs]
    refused = [f"job {n} ({labels[n]}): {why}" if multirun else why for n, why in enumerate(reasons) if why]
    refused += disk_refusals([plan for plan in plans if not plan.done], folder)
    if refused:
        raise ConfigError(refused[0] + (f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""))


def show_jobs(jobs: Sequence[Job]) -> None:
    """What all jobs have in common, a line each; then job by job; then what is left to do."""
    plans = [job for _, job in jobs if isinstance(job, Plan)]
    told = [dict(plan.rows()) for plan in plans]
    common = {name: value for name, value in (told[0] if told else {}).items() if all(t[name] == value for t in told)}
    print_table(f"plan: {len(jobs)} jobs", ["all jobs", "value"], [[name, value] for name, value in common.items()])
    shown = [name for name in (told[0] if told else {}) if name not in common]
    own = iter(told)
    table = []
    for number, (label, (_, job)) in enumerate(zip(distinct([overrides for overrides, _ in jobs]), jobs)):
        row = next(own) if isinstance(job, Plan) else {name: "cannot run" for name in shown}
        table.append([str(number), label, *(row[name] for name in shown)])
    print_table("", ["job", "overrides", *shown], table)
    left = [plan for plan in plans if not plan.done]
    times = [sum(plan.seconds) / len(plan.seconds) for plan in left if plan.seconds]
    known = f"{clock(sum(times))} one after the other" + (
        f" for {len(times)} of them" if len(times) < len(left) else ""
    )
    print(
        f"{len(plans) - len(left)} done, {len(left)} to run: {known if times or not left else 'time unknown'}, "
        f"{size(sum(plan.disk_bytes for plan in left))} of disk"
    )


def disk_refusals(left: Sequence[Plan], folder: Path) -> list[str]:
    """Why what the jobs leave does not fit on the disk of the output folder, or of the cache."""
    needs = [(folder, sum(plan.disk_bytes for plan in left), "hydra.run.dir=DIR (hydra.sweep.dir=DIR)")]
    needs += [(plan.experiment.cache.path, plan.download_bytes, "cache.dir=DIR") for plan in left[:1]]
    found = []
    for path, needed, key in needs:
        existing = next(item for item in [path.absolute(), *path.absolute().parents] if item.exists())
        free = shutil.disk_usage(existing).free
        if needed > free:
            found.append(f"{path}: needs {size(needed)} of disk, {size(free)} are free; choose another: {key}")
    return found


def free_memory() -> int:
    """Bytes of main memory that this process can still have."""
    free = int(psutil.virtual_memory().available)
    try:
        return min(free, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return free


def named(names: Sequence[str], falling_back: int) -> str:
    """A few names, and how many more by rank."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    ranked = f"{falling_back} by rank" if falling_back else ""
    return "; ".join(part for part in (shown, ranked) if part) or "none"


def size(count: float) -> str:
    """Bytes for a person, in powers of 1000."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: Sequence[float]) -> str:
    """How long it takes, as a range where the records differ by more than a quarter."""
    if not seconds:
        return "unknown"
    low, high = min(seconds), max(seconds)
    return clock(high) if high <= 1.25 * low else f"{clock(low)} to {clock(high)}"


def clock(seconds: float) -> str:
    """A time for a person."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
