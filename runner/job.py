"""One job: skipped when it is done already, run, and its record left whatever happens."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from slimrun.evaluation.base import PATHS
from slimrun.ops import scratch
from slimrun.ops.files import replacing
from slimrun.ops.model.base import Outline
from slimrun.runner import export, resume, status
from slimrun.runner.checks import first_notes
from slimrun.runner.config import (
    CONFIG_MODULE,
    CONFIG_NAME,
    VERSION_BASE,
    ConfigError,
    build,
    build_tracker,
    checked,
    typed,
)
from slimrun.runner.display import Stages
from slimrun.runner.estimate import facts
from slimrun.runner.experiment import Experiment
from slimrun.runner.folder import ARTIFACT, RESULTS, UPLOADED, bundle_of, read_json, write_json
from slimrun.runner.interrupt import interruptible
from slimrun.runner.output import LOG
from slimrun.runner.overrides import short_name
from slimrun.runner.report import run as report
from slimrun.runner.report.table import sizes
from slimrun.runner.result import Result
from slimrun.runner.share import share_of_machine

OK, FAILED = "ok", "failed"
STOPPED = ".stopped"  # in the sweep's folder: a job failed, and sweep.on_error=stop
log = logging.getLogger("slimrun")
log.addHandler(logging.NullHandler())  # hydra/job_logging=disabled: nothing on the terminal either


@hydra.main(version_base=VERSION_BASE, config_path=f"pkg://{CONFIG_MODULE}", config_name=CONFIG_NAME)
def run_job(config: DictConfig) -> list[float] | float | str:
    """One job; returns its objectives. In a multirun a failure is recorded and returned: the other jobs go on."""
    with interruptible():  # a launcher's worker
        return _run_job(config)


def _run_job(config: DictConfig) -> list[float] | float | str:
    context = HydraConfig.get()
    os.chdir(context.runtime.cwd)  # where the command was started; a launcher's worker may live elsewhere
    output = Path(context.runtime.output_dir)
    sweep = Path(context.sweep.dir).absolute() if context.mode == RunMode.MULTIRUN else None
    record: dict[str, Any] = {"overrides": typed(context.overrides.task), "repro": reproduce()}
    if sweep is not None:
        record["job"] = context.job.num
    tracker = build_tracker(config)
    try:
        experiment = build(config)
        record["config_hash"] = experiment.identity()
        if sweep is not None and experiment.sweep.resume and (results := adopt_finished(output, experiment, record)):
            tracker.deliver(output, sweep)
            return experiment.sweep.values(results)
        clear(output)
        experiment.cache.clear()
        resume.clear(experiment.cache.path)
        outline = checked(experiment)
        for note in first_notes(experiment, outline):
            print(f"note: {note}", file=sys.stderr)
        if sweep is not None and (sweep / STOPPED).exists():
            raise NotStarted("not started: another job failed, and sweep.on_error=stop")
        yaml = effective(config)
        with replacing(output / "config.yaml", 0o666) as file:
            file.write_text(yaml, encoding="utf-8", errors="backslashreplace")
        log.info("effective configuration:\n%s", yaml)
        with tracker.run(output, sweep, run_name()), share_of_machine(experiment.device, sweep is not None):
            result = attempt(experiment, outline, output, record)
        experiment.cache.note_finished(record["config_hash"], output, facts(experiment, result))
    except (Exception, KeyboardInterrupt) as error:
        log.exception("the run failed")
        message = describe(error)
        write_json(output / RESULTS, {"status": FAILED, "error": message, **record})
        tracker.deliver(output, sweep)
        details = next(file for file in (output / LOG, output / RESULTS) if file.exists())
        print(f"slimrun: {message}; see {details}", file=sys.stderr)
        if sweep is None:
            sys.exit(status.FAILED)
        if config.sweep.on_error == "stop":
            (sweep / STOPPED).touch()
        if isinstance(error, KeyboardInterrupt):
            raise
        return FAILED
    tracker.deliver(output, sweep)
    if sweep is None:
        show(result, experiment, output)
        if result.gate and not result.gate.passed:
            sys.exit(status.GATED)
    return experiment.sweep.values(result.metrics)


class NotStarted(Exception):
    """The job was not begun."""


def attempt(experiment: Experiment, outline: Outline, output: Path, record: dict[str, Any]) -> Result:
    """Run the experiment and write what it found, again after a failure as often as `sweep.retries` allows."""
    for again in reversed(range(experiment.sweep.retries + 1)):
        try:
            with Stages() as stages, resume.journal(experiment.cache.path, record["config_hash"]) as journal:
                result = experiment.run(output, stages, outline, journal)
                with stages("report"):
                    report.write(result, output, record["repro"], record)
            return result
        except (ConfigError, ArithmeticError):
            raise  # no second attempt would end otherwise
        except Exception:
            if not again:
                raise
            log.exception("the run failed; attempts left: %d", again)
    raise AssertionError("range(n + 1) is not empty")


def adopt_finished(output: Path, experiment: Experiment, record: dict[str, Any]) -> dict[str, Any] | None:
    """The results of a job that ended well before, here or in another folder, from where they are then copied."""
    for folder in (output, experiment.cache.finished(record["config_hash"])):
        results = read_json(folder / RESULTS) if folder else None
        if folder and results and experiment.how_small and not bundle_of(folder, results):
            continue  # the smallest one's is what is asked for
        if folder and results and results.get("status") == OK and results.get("config_hash") == record["config_hash"]:
            if folder != output:
                clear(output)
                shutil.rmtree(output / ARTIFACT, ignore_errors=True)  # of what was done here before
                for file in (folder / name for name in UPLOADED):
                    if file.is_file():
                        shutil.copyfile(file, output / file.name)
                write_json(output / RESULTS, {**results, **record, "done_in": results.get("done_in", str(folder))})
            print(f"slimrun: job {record['job']} is done already, see {folder}", file=sys.stderr)
            return results
    return None


def clear(output: Path) -> None:
    """Remove what attempts that were killed left, here and where temporary files go; the log is written over."""
    (output / RESULTS).unlink(missing_ok=True)
    for folder in (output, Path(tempfile.gettempdir())):
        scratch.clear(folder)


def effective(config: DictConfig) -> str:
    """config.yaml: every value resolved, and where tasks read from a file or folder, its place from anywhere."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    for task in (values["task"] or {}).values():
        for node, key in [*((task, key) for key in PATHS), (task.get("hub") or {}, "id")]:
            place = os.path.expanduser(node.get(key) or "")
            if os.path.exists(place):  # else it is a name on the hub
                node[key] = os.path.abspath(place)
    return OmegaConf.to_yaml(values)


def show(result: Result, experiment: Experiment, output: Path) -> None:
    """The final table on stdout, with where to look next as its last line."""
    for warning in result.warnings:
        print(f"note: {warning}", file=sys.stderr)
    report.show(f"slimrun {experiment.model.name}", result.scores, sizes(result.metrics))
    for exported in result.exports:
        export.show(exported)
    if result.gate:
        report.show_gate(result.gate)
    print(f"bundle: {result.weight_file.parent}")
    print(f"report: {output / 'report.md'}")
    print(f"look next: {experiment.tracking.look_next() or output / RESULTS}")


def reproduce() -> str:
    """The command line that gives this job's numbers again, from wherever it is typed."""
    context = HydraConfig.get()
    folders = [source.path for source in context.runtime.config_sources if source.provider == "command-line"]
    flags = [flag for folder in folders for flag in ("--config-dir", folder)]
    name = str(context.job.config_name)
    flags += ["--config-name", name] if name != CONFIG_NAME else []
    if context.sweeper._target_.endswith(".HowSmallSweeper"):  # whose preset makes a multirun of any command
        flags += ["hydra.mode=RUN"]
    searched = [item for item in typed(context.overrides.hydra) if item.startswith("hydra.searchpath")]
    start = shlex.join(["cd", context.runtime.cwd])
    return f"{start} && {shlex.join(['slimrun', *flags, *searched, *typed(context.overrides.task)])}"


def run_name() -> str:
    """What tells a run from its neighbours in a list: method, what the command line changed, model."""
    context = HydraConfig.get()
    named = ("model=", "quant=", "tracking", "hydra", "cache")
    changes = [item.lstrip("+") for item in typed(context.overrides.task) if not item.lstrip("+").startswith(named)]
    method, model = (str(context.runtime.choices[group]) for group in ("quant", "model"))
    return " ".join(filter(None, (method, short_name(changes), model)))


def describe(error: BaseException) -> str:
    """One line for a person: what went wrong."""
    text = str(error).strip().split("\n")[0]
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what the float model gave is kept, run the same command again"
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in OUT_OF_MEMORY):
        return f"out of memory ({type(error).__name__}): {text}"
    return text if isinstance(error, ValueError | NotStarted) else f"{type(error).__name__}: {text}"


OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
