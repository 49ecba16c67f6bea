"""`plan=true`: what a run or every job of a multirun would do, and whether it can; no weight is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from slimrun.ops.memory import free_memory
from slimrun.runner.config import ConfigError
from slimrun.runner.display import print_table
from slimrun.runner.estimate import Estimate
from slimrun.runner.folder import SCORES, read_scores
from slimrun.runner.overrides import distinct
from slimrun.runner.settings import PINNED_CALIBRATION

Job = tuple[list[str], Estimate | ConfigError]  # its overrides, and what it takes or why it cannot run
NO_RUN = "not known: no run with it is recorded"
SOURCES = {True: " (recorded)", False: " (estimated)"}


def show(jobs: Sequence[Job], folder: Path, multirun: bool, trials: int = 1) -> None:
    """Print the plan of one job or of all; ConfigError, with the number, when something cannot run or does not fit.

    `folder` is where the outputs go. A search runs its one job `trials` times, with other values each time.
    """
    if multirun:
        show_jobs(jobs, trials)
    else:
        [(overrides, job)] = jobs
        assert isinstance(job, Estimate)
        print_table(" ".join(["plan: slimrun", *overrides]), ["", "value"], rows(job))
    labels = distinct([overrides for overrides, _ in jobs])
    reasons = [refusal(job) if isinstance(job, Estimate) else str(job) for _, job in jobs]
    refused = [f"job {n} ({labels[n]}): {why}" if multirun else why for n, why in enumerate(reasons) if why]
    refused += disk_refusals([job for _, job in jobs if isinstance(job, Estimate)], folder, trials)
    if refused:
        raise ConfigError(refused[0] + (f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""))


def show_jobs(jobs: Sequence[Job], trials: int) -> None:
    """What all jobs have in common, a line each; then job by job; then what is left to do."""
    told = [dict(rows(job)) if isinstance(job, Estimate) else {} for _, job in jobs]
    names = dict.fromkeys(name for job in told for name in job)
    common = [name for name in names if len({job[name] for job in told if job}) == 1]
    known = next((job for job in told if job), {})
    title = "plan: each job of a search" if trials > 1 else f"plan: {len(jobs)} jobs"
    print_table(title, ["all jobs", "value"], [[name, known[name]] for name in common])
    own = [name for name in names if name not in common]
    labels = distinct([overrides for overrides, _ in jobs])
    table = [
        [str(number), label, *(job.get(name, "cannot run") for name in own)]
        for number, (label, job) in enumerate(zip(labels, told))
    ]
    if len(jobs) > 1:
        print_table("", ["job", "overrides", *own], table)
    able = [job for _, job in jobs if isinstance(job, Estimate)]
    left = [job for job in able if not job.done or trials > 1]
    times = [trials * seconds for job in left if (seconds := expected(job)) is not None]
    time = f"{clock(sum(times))} one after the other" if times or not left else "time unknown"
    some = f" for {len(times)} of them" if 0 < len(times) < len(left) else ""
    what = f"a search of {trials} such jobs" if trials > 1 else f"{len(able) - len(left)} done, {len(left)} to run"
    print(f"{what}: {time}{some}, {size(trials * sum(job.disk_bytes for job in left))} of disk")


def rows(job: Estimate) -> list[list[str]]:
    """Everything about a job: (what, how much)."""
    experiment, outline = job.experiment, job.outline
    kept = [name for name in outline.linears if name not in job.covered]
    quantized = len(job.covered) - job.falling_back
    bits, told = job.bits
    return [
        ["read", reads(job)],
        ["calibrate on", calibrates(job)],
        ["evaluate", ", ".join(experiment.task) + baselines(job)],
        ["decides", "\n".join(decides(job)) or "not known: no run of this model or another is recorded with them"],
        ["quantize", f"{quantized} linears of {len(outline.linears)} as {experiment.quant.quant_type}"],
        ["keep float", f"{len(kept) + job.falling_back}: {named(kept, job.falling_back)}"],
        ["weights covered", f"{job.weights:,}, {job.covered_share:.1%} of those of linears and experts"],
        ["codec", type(experiment.compress).__name__],
        ["compressed", f"{size(job.compressed_bytes)}, {bits:.2f} bits a weight{SOURCES[told]}"],
        *([["export", ", ".join(experiment.export)]] if experiment.export else []),
        ["disk", f"{size(job.disk_bytes)}, at most {size(job.scratch_bytes)} more while it runs"],
        ["peak memory", memory(job)],
        ["time", duration(job)],
        ["device", experiment.device.name],
        ["already done", done(job)],
        *([["notes", "\n".join(outline.notes)]] if outline.notes else []),
    ]


def reads(job: Estimate) -> str:
    """The model and where it comes from."""
    model = job.experiment.model
    what = f"{model.name}, {size(job.outline.float_bytes)} of float weights"
    if job.download_bytes:
        return f"{what}, fetched first ({size(model.download_bytes)})"
    return f"{what} from {model.origin()}"


def calibrates(job: Estimate) -> str:
    """The prompts and where they come from."""
    calibration = job.experiment.calibration
    source = calibration.path or ("calibration.prompts" if calibration.prompts else PINNED_CALIBRATION)
    return f"{len(calibration.texts())} prompts of at most {calibration.length} tokens from {source}"


def baselines(job: Estimate) -> str:
    """How much of the float model's evaluation is in the cache."""
    if job.fingerprint is None:
        return ""
    missing = job.experiment.baselines_missing(job.fingerprint)
    return f" (float baseline to compute: {', '.join(missing)})" if missing else " (float baselines cached)"


def memory(job: Estimate) -> str:
    """Memory of this process, and of cards if there are some."""
    peak, told = job.memory
    device = job.experiment.device
    held = f"{size(job.outline.float_bytes)} of float weights, those without room there in main memory"
    on_card = f"; {device.type}: {held}" if device.type != "cpu" else ""
    return size(peak) + SOURCES[told] + on_card


def decides(job: Estimate) -> list[str]:
    """Which margins the items of each task decide, as a recorded run tells, a line a task; no line where none does."""
    told = {task: decided(job, task) for task in job.own["tasks"]}
    return [f"{task}: {line or NO_RUN}" for task, line in told.items()] if any(told.values()) else []


def decided(job: Estimate, task: str) -> str:
    """What the newest recorded run with this task tells: of this model and method, else of this model, else of any."""
    own = job.own["model"], job.own["tasks"][task]
    for records in (job.same_method, [one for one in job.recorded if one.model == own[0]], job.recorded):
        for record in reversed([one for one in records if one.tasks.get(task) == own[1]]):
            for score in read_scores(Path(record.folder) / SCORES) or ():
                if score.task == task and score.verdict and (line := score.decides or score.withheld):
                    return line + (" (as another model's run told)" if record.model != own[0] else "")
    return ""


def expected(job: Estimate) -> float | None:
    """Seconds, as recorded runs took on average, else as this machine's speed tells; None when nothing tells."""
    if job.seconds:
        return sum(job.seconds) / len(job.seconds)
    try:
        return sum(job.forecast.values())
    except ValueError:
        return None


def duration(job: Estimate) -> str:
    """How long it takes, as a range where the recorded runs differ by more than a quarter."""
    if not job.seconds:
        try:
            stages = job.forecast
        except ValueError as error:
            return f"unknown: no run of this model with these tasks is recorded on this machine, and {error}"
        told = ", ".join(f"{stage} {clock(seconds)}" for stage, seconds in stages.items())
        return f"about {clock(sum(stages.values()))} (from this machine's speed: {told})"
    low, high = min(job.seconds), max(job.seconds)
    shown = clock(high) if high <= 1.25 * low else f"{clock(low)} to {clock(high)}"
    return f"{shown} (recorded: {len(job.seconds)}{'' if job.same_method else ', with other methods'})"


def done(job: Estimate) -> str:
    """Where it is, or why it is not."""
    return job.done or ("no" if job.fingerprint else "not known: the model's files were not read yet")


def refusal(job: Estimate) -> str:
    """Why the job does not fit into main memory, "" when it does: all but the least may lie in files."""
    needed, free = job.least_memory, free_memory()
    if needed <= free or job.done:
        return ""
    way_out = "quant.ignore=[NAME] leaves the largest linear float; or take a machine with more"
    return f"needs {size(needed)} of main memory at least, {size(free)} are free; {way_out}"


def disk_refusals(jobs: Sequence[Estimate], folder: Path, trials: int) -> list[str]:
    """Why what the jobs leave does not fit on the disk of the output folder, or of the cache."""
    left = [job for job in jobs if not job.done]
    needs = [(folder, trials * sum(job.disk_bytes for job in left), "hydra.run.dir=DIR (hydra.sweep.dir=DIR)")]
    needs += [(job.experiment.cache.path, job.download_bytes, "cache.dir=DIR") for job in left[:1]]
    refusals = []
    for path, needed, key in needs:
        existing = next(item for item in [path.absolute(), *path.absolute().parents] if item.exists())
        free = shutil.disk_usage(existing).free
        if needed > free:
            refusals.append(f"{path}: needs {size(needed)} of disk, {size(free)} are free; choose another: {key}")
    return refusals


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


def clock(seconds: float) -> str:
    """A time for a person."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
