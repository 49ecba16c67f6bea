"""The command line: checks a run before Hydra starts it, claims its folder, runs it, and sets the exit status."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slimrun.runner import how_small, output
from slimrun.runner.config import CompositionError, ConfigError, build, build_tracker, checked, composed, typed
from slimrun.runner.display import print_anything
from slimrun.runner.estimate import Estimate
from slimrun.runner.help import choices
from slimrun.runner.how_small import dial_of
from slimrun.runner.interrupt import interruptible
from slimrun.runner.job import run_job
from slimrun.runner.jobs import Command, read
from slimrun.runner.origin import origins_told
from slimrun.runner.plan import Job, show
from slimrun.runner.refusals import line
from slimrun.runner.status import DONE, FAILED, WRONG
from slimrun.runner.sweep import SweepCallback, all_done, begin, begun_before, check_apart, conclude
from slimrun.runner.tracking.base import Tracker
from slimrun.runner.tracking.mlflow import MLflow
from slimrun.runner.tracking.uri import conceal, override_of

RUN_FOLDER, SWEEP_FOLDER = "hydra.run.dir", "hydra.sweep.dir"
FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own: raise what goes wrong instead of printing it


def main() -> None:
    """`slimrun`: exit status 0 done, 1 a run failed, 2 the configuration is wrong, 3 the gate is not passed."""
    print_anything()
    if "--version" in sys.argv[1:]:  # Hydra's parser would tell its own
        print(f"slimrun {version('slimrun')}")
        sys.exit(DONE)
    arguments = get_args_parser().parse_intermixed_args()
    # Hydra wants its flags before the overrides; people write `slimrun quant=w8a8 -m seed=1,2` too
    flags = [item for item in sys.argv[1:] if item not in arguments.overrides]
    arguments.overrides = conceal(arguments.overrides)
    sys.argv[1:] = [*flags, *arguments.overrides]
    try:
        with interruptible():
            status = answered(arguments)
    except ConfigError as error:
        print(f"slimrun: {error}", file=sys.stderr)
        status = WRONG
    except KeyboardInterrupt:
        print("slimrun: interrupted", file=sys.stderr)
        status = FAILED
    sys.exit(status)


def answered(arguments: Namespace) -> int:
    """Do what the command line asks for; the exit status."""
    OmegaConf.register_new_resolver("choices", partial(choices, arguments.config_dir), replace=True)  # for --help
    if arguments.help or arguments.hydra_help or arguments.shell_completion:
        return hydra_runs()
    if arguments.cfg or arguments.info:
        _check_tracking(composed(arguments.overrides, arguments.config_name, arguments.config_dir))
        return hydra_runs()
    command = read(arguments)
    configs = check(command, arguments)
    if not configs:
        return DONE
    tracker = build_tracker(configs[0])
    delivered = _deliver(tracker)
    if _only_delivers(tracker):
        return DONE if delivered else FAILED
    if command.multirun:
        return multirun(command, configs, tracker)
    with output.claimed(_folder(command), RUN_FOLDER, by_time=_by_time(command)) as folder:
        sys.argv.append(output.chosen(RUN_FOLDER, folder))
        return hydra_runs()


def multirun(command: Command, configs: Sequence[DictConfig], tracker: Tracker) -> int:
    """Run the jobs in the sweep's folder; the exit status. The table comes even when a launcher gives up."""
    resume, by_time = bool(configs[0].sweep.resume), _by_time(command)
    axis = configs[0].sweep.axis
    before = begun_before(command.sweep) if resume and by_time else None
    jobs = [typed(config.hydra.overrides.task) for config in configs] if command.listed else []
    with output.claimed(before or _folder(command), SWEEP_FOLDER, by_time=by_time and before is None) as folder:
        begin(folder, command.sweep, jobs, resume)
        if jobs and resume and all_done(folder, configs, tracker):
            return conclude(folder, tracker, axis)
        sys.argv.append(output.chosen(SWEEP_FOLDER, folder))
        with suppress(KeyboardInterrupt):
            hydra_runs()  # its status says less than the jobs' own
        if SweepCallback.status is None:  # the end callback was not reached
            conclude(folder, tracker, axis)
            return FAILED
    return SweepCallback.status


def hydra_runs() -> int:
    """Let Hydra do what the arguments say; the exit status. What it raises itself is one line."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        run_job()
    except SystemExit as end:
        return int(end.code or 0)
    except Exception as error:
        if before == "1":
            raise
        print(f"slimrun: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return WRONG if isinstance(error, HydraException | OmegaConfBaseException | ValueError) else FAILED
    finally:
        os.environ.pop(FULL_ERROR)
        if before is not None:
            os.environ[FULL_ERROR] = before
    return DONE


def check(command: Command, arguments: Namespace) -> list[DictConfig]:
    """Compose and check every job before anything is written; those that are to be run.

    One job: ConfigError on whatever can be seen to be wrong. A multirun: CompositionError only, since a value that
    a method refuses fails its own job.
    """
    to_run = []
    planned: list[Job] = []
    folder = _folder(command)
    source = (arguments.config_name, arguments.config_dir)
    configs = [composed(job, *source) for job in command.jobs] if command.multirun else [command.config]
    if command.multirun:
        check_apart(configs, command.listed)
    for overrides, config in zip(command.jobs, configs):
        _check_tracking(config)
        dial = dial_of(config) if command.multirun else None
        for end in how_small.ends(dial) if dial else ():
            with origins_told(config, *source), end.blamed():
                build(composed([*overrides, end.override], *source))
        try:
            with origins_told(config, *source):
                experiment = build(config)
                if not command.multirun or experiment.plan or dial:
                    outline = checked(experiment)
                if dial:
                    how_small.check(dial, Estimate(experiment, outline))
        except ConfigError as error:
            if not command.multirun or dial or isinstance(error, CompositionError):
                raise
            to_run.append(config)
            planned.append((typed(config.hydra.overrides.task), error))
            continue
        output.check(folder, SWEEP_FOLDER if command.multirun else RUN_FOLDER)
        if experiment.plan:
            planned.append((typed(config.hydra.overrides.task), Estimate(experiment, outline)))
        else:
            to_run.append(config)
    if any(isinstance(job, Estimate) for _, job in planned):
        trials = command.config.hydra.sweeper.get("n_trials", 1) if command.multirun else 1
        show(planned, folder, command.multirun, trials)
        return []
    return to_run


def _folder(command: Command) -> Path:
    """Where the outputs go, absolute."""
    key = SWEEP_FOLDER if command.multirun else RUN_FOLDER
    try:
        folder = str(OmegaConf.select(command.config, key) or "")
    except OmegaConfBaseException as error:
        raise CompositionError(f"{key}: {line(error)}") from error
    if not folder.strip():
        raise CompositionError(f"{key}={folder} names no folder; choose one with {key}=DIR, or leave it out")
    return Path(folder).absolute()


def _by_time(command: Command) -> bool:
    """Whether the folder is named by the time of the start, so that each start wants one of its own."""
    node = command.config.hydra.sweep if command.multirun else command.config.hydra.run
    return "${now:" in str(OmegaConf.to_container(node, resolve=False)["dir"])  # type: ignore[index, call-overload]


def _deliver(tracker: Tracker) -> bool:
    """Log what waited for the tracking server; False when some of it still waits."""
    delivered, waiting = tracker.deliver_waiting()
    if delivered or waiting or _only_delivers(tracker):
        print(f"note: {delivered} runs that waited are logged now, {waiting} still wait", file=sys.stderr)
    return not waiting


def _only_delivers(tracker: Tracker) -> bool:
    return isinstance(tracker, MLflow) and tracker.sync


def _check_tracking(config: DictConfig) -> None:
    """ConfigError on an address that no store can have; the password of one that a file names is masked for Hydra."""
    tracker = build_tracker(config)
    if isinstance(tracker, MLflow) and (masking := override_of(tracker.uri)) and masking not in sys.argv:
        sys.argv.append(masking)
    try:
        tracker.check()
    except ValueError as error:
        raise ConfigError(str(error)) from error
