"""The command line: checks a run before Hydra starts it, runs it, and sets the exit status."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from ops.framework.base import Outline
from runner.config import CONFIG_MODULE, CONFIG_NAME, VERSION_BASE, CompositionError, ConfigError, build, composed, flat
from runner.display import Stages, print_table
from runner.estimate import Estimate, facts
from runner.experiment import Experiment
from runner.plan import Job, show
from runner.result import Result, write_json
from runner.sweep import SweepCallback, parent_of

DONE, FAILED, WRONG = 0, 1, 2
log = logging.getLogger("slimrun")


def main() -> None:
    """`slimrun`: exit status 0 done, 1 a run failed, 2 the configuration is wrong."""
    arguments = get_args_parser().parse_intermixed_args()
    # Hydra wants its flags before the overrides; people write `slimrun quant=w8a8 -m seed=1,2` too
    flags = [item for item in sys.argv[1:] if item not in arguments.overrides]
    sys.argv[1:] = [*flags, *arguments.overrides]
    try:
        done = check(arguments)
    except ConfigError as error:
        sys.exit(_complain(error, WRONG))
    if not done:
        run_job()
    sys.exit(FAILED if SweepCallback.failed else DONE)


def check(arguments: Namespace) -> bool:
    """Compose and check every job of the command line before anything is written; True if only a plan was asked.

    One job: ConfigError on whatever can be seen to be wrong. A multirun: CompositionError only, since a value that
    a method refuses fails its own job.
    """
    if arguments.help or arguments.hydra_help or arguments.shell_completion:
        return False
    planned: list[Job] = []
    planning = False
    for overrides in _jobs(arguments):
        config = composed(overrides, arguments.config_name, arguments.config_dir)
        if arguments.cfg or arguments.info:
            continue
        try:
            experiment = build(config)
            if not arguments.multirun or experiment.plan:
                outline = _checked(experiment)
        except ConfigError as error:
            if arguments.multirun and not isinstance(error, CompositionError):
                planned.append((overrides, error))
                continue
            raise
        folder = Path(config.hydra.sweep.dir if arguments.multirun else config.hydra.run.dir)
        if experiment.plan:
            planning = True
            planned.append((overrides, Estimate(experiment, outline)))
        else:
            _check_writable(folder)
    if planning:
        trials = config.hydra.sweeper.get("n_trials", 1) if arguments.multirun else 1
        show(planned, folder, arguments.multirun, trials)
    return planning


@hydra.main(version_base=VERSION_BASE, config_path=f"pkg://{CONFIG_MODULE}", config_name=CONFIG_NAME)
def run_job(config: DictConfig) -> list[float] | float | str:
    """One job; returns its objectives. In a multirun a failure is recorded and returned: the other jobs go on."""
    context = HydraConfig.get()
    output = Path(context.runtime.output_dir)
    multirun = context.mode == RunMode.MULTIRUN
    try:
        experiment = build(config)
        _checked(experiment)
        result = execute(experiment, config, output, parent_of(Path(context.sweep.dir)) if multirun else None)
    except (Exception, KeyboardInterrupt) as error:
        message = _describe(error)
        log.exception("the run failed")
        write_json(output / "results.json", {"status": "failed", "error": message})
        status = _complain(RuntimeError(f"{message}; see {output / 'run.log'}"), FAILED)
        if multirun and not isinstance(error, KeyboardInterrupt):
            return "failed"
        sys.exit(status)
    _conclude(result, experiment, output, multirun)
    return experiment.sweep.values(result.metrics)


def execute(experiment: Experiment, config: DictConfig, output: Path, parent: str | None) -> Result:
    """Run the experiment with its tracking, and write what it found."""
    command = reproduce()
    yaml = OmegaConf.to_yaml(config, resolve=True)
    log.info("effective configuration:\n%s", yaml)
    with experiment.tracking.run(_run_name(), flat(config), parent) as open_run, Stages() as stages:
        result = experiment.run(output, stages)
        with stages("report"):
            result.write(output, yaml, command)
            experiment.cache.note_finished(result.config_hash, output, facts(experiment, result))
        with stages("track"):
            open_run.finish(result, output, command)
    return result


def _jobs(arguments: Namespace) -> list[list[str]]:
    """The override lists of all jobs; another sweeper than Hydra's own counts as one job of its fixed overrides."""
    overrides: Sequence[str] = arguments.overrides
    if not arguments.multirun:
        return [list(overrides)]
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except Exception as error:  # the parser's own errors say which override
        raise CompositionError(str(error).strip().split("\n")[0]) from error
    fixed = [str(item.input_line) for item in parsed if not item.is_sweep_override()]
    config = composed(fixed, arguments.config_name, arguments.config_dir)
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        wanted, told = sweeper.get("direction"), len(config.sweep.objectives)
        directions = len(wanted) if isinstance(wanted, ListConfig) else 1
        if wanted is not None and directions != told:
            raise CompositionError(
                f"sweep.objectives={config.sweep.objectives}: hydra.sweeper.direction asks for {directions}; "
                "name as many keys of results.json"
            )
        return [fixed]
    return [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]


def _checked(experiment: Experiment) -> Outline:
    try:
        return experiment.check()
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_writable(folder: Path) -> None:
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f"hydra.run.dir={folder}: {existing} cannot be written; choose another with hydra.run.dir=DIR"
        )


def _conclude(result: Result, experiment: Experiment, output: Path, multirun: bool) -> None:
    """The final table on stdout, with where to look next as its last line."""
    for warning in result.warnings:
        print(f"note: {warning}", file=sys.stderr)
    print_table(f"slimrun {experiment.model.name}", ["", "value"], result.headlines())
    print(f"bundle: {result.weight_file.parent}")
    print(f"report: {output / 'report.md'}")
    look = experiment.tracking.look_next()
    if not multirun:
        print(f"look next: {look}" if look else f"look next: {output / 'results.json'}")


def reproduce() -> str:
    """The command line that gives this job's numbers again, from wherever it is typed."""
    context = HydraConfig.get()
    folders = [source.path for source in context.runtime.config_sources if source.provider == "command-line"]
    flags = [flag for folder in folders for flag in ("--config-dir", folder)]
    name = str(context.job.config_name)
    flags += ["--config-name", name] if name != CONFIG_NAME else []
    searched = [item for item in context.overrides.hydra if item.startswith("hydra.searchpath")]
    start = shlex.join(["cd", context.runtime.cwd])
    return f"{start} && {shlex.join(['slimrun', *flags, *searched, *context.overrides.task])}"


def _run_name() -> str:
    """What tells a run from its neighbours in a list: model, method, and what the command line changed."""
    context = HydraConfig.get()
    named = ("model=", "quant=", "tracking", "hydra", "cache")
    changes = [item.lstrip("+") for item in context.overrides.task if not item.lstrip("+").startswith(named)]
    return " ".join([str(context.runtime.choices["model"]), str(context.runtime.choices["quant"]), *changes])


def _describe(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the float baselines finished so far are cached, run the same command again"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return f"out of memory ({type(error).__name__}): {str(error).splitlines()[0] if str(error) else ''}"
    text = str(error).strip().split("\n")[0]
    return text if isinstance(error, ConfigError | ValueError) else f"{type(error).__name__}: {text}"


def _complain(error: BaseException, status: int) -> int:
    print(f"slimrun: {error}", file=sys.stderr)
    return status
