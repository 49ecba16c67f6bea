"""The command line: checks a run before Hydra starts it, runs it, and sets the exit status."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig

from runner.config import CompositionError, ConfigError, build, build_tracker, checked, composed
from runner.estimate import Estimate
from runner.job import run_job
from runner.plan import Job, show
from runner.sweep import SweepCallback, all_done, claimed, conclude, folder_of
from runner.tracking import MLflow, Tracker
from runner.tracking_uri import conceal, override_of

DONE, FAILED, WRONG = 0, 1, 2


def main() -> None:
    """`slimrun`: exit status 0 done, 1 a run failed, 2 the configuration is wrong."""
    arguments = get_args_parser().parse_intermixed_args()
    # Hydra wants its flags before the overrides; people write `slimrun quant=w8a8 -m seed=1,2` too
    flags = [item for item in sys.argv[1:] if item not in arguments.overrides]
    arguments.overrides = conceal(arguments.overrides)
    sys.argv[1:] = [*flags, *arguments.overrides]
    try:
        configs = check(arguments)
        if arguments.help or arguments.hydra_help or arguments.shell_completion or arguments.cfg or arguments.info:
            run_job()  # Hydra answers
            return
        if not configs:
            sys.exit(DONE)
        tracker = build_tracker(configs[0])
        delivered = _deliver(tracker)
        if isinstance(tracker, MLflow) and tracker.sync:
            sys.exit(DONE if delivered else FAILED)
        if arguments.multirun:
            sys.exit(multirun(arguments.overrides, configs, tracker))
    except ConfigError as error:
        print(f"slimrun: {error}", file=sys.stderr)
        sys.exit(WRONG)
    run_job()


def multirun(overrides: Sequence[str], configs: Sequence[DictConfig], tracker: Tracker) -> int:
    """Run the jobs in the sweep's folder; the exit status. The table comes even when a launcher gives up."""
    folder = folder_of(overrides, configs[0])
    sys.argv.append("hydra.sweep.dir='{}'".format(str(folder).replace("'", "\\'")))
    planned = configs[0].hydra.sweeper._target_.endswith(BasicSweeper.__name__)
    jobs = [list(config.hydra.overrides.task) for config in configs] if planned else []
    with claimed(folder, overrides, jobs, configs[0].sweep.resume):
        if jobs and configs[0].sweep.resume and all_done(folder, configs, tracker):
            conclude(folder, tracker)
            return DONE
        with suppress(SystemExit, KeyboardInterrupt):  # Hydra's way to say that a launcher failed
            run_job()
        if SweepCallback.unfinished is None:  # the end callback was not reached
            conclude(folder, tracker)
    return DONE if SweepCallback.unfinished == 0 else FAILED


def check(arguments: Namespace) -> list[DictConfig]:
    """Compose and check every job of the command line before anything is written; those that are to be run.

    One job: ConfigError on whatever can be seen to be wrong. A multirun: CompositionError only, since a value that
    a method refuses fails its own job.
    """
    if arguments.help or arguments.hydra_help or arguments.shell_completion:
        return []
    found = []
    planned: list[Job] = []
    for overrides in _jobs(arguments):
        config = composed(overrides, arguments.config_name, arguments.config_dir)
        _check_tracking(config)
        if arguments.cfg or arguments.info:
            continue
        try:
            experiment = build(config)
            if not arguments.multirun or experiment.plan:
                outline = checked(experiment)
        except ConfigError as error:
            if not arguments.multirun or isinstance(error, CompositionError):
                raise
            found.append(config)
            planned.append((overrides, error))
            continue
        folder = Path(config.hydra.sweep.dir if arguments.multirun else config.hydra.run.dir)
        if experiment.plan:
            planned.append((overrides, Estimate(experiment, outline)))
        else:
            _check_launcher(config)
            _check_writable(folder)
            found.append(config)
    if any(isinstance(job, Estimate) for _, job in planned):
        show(planned, folder, arguments.multirun, config.hydra.sweeper.get("n_trials", 1) if arguments.multirun else 1)
        return []
    return found


def _deliver(tracker: Tracker) -> bool:
    """Log what waited for the tracking server; False when some of it still waits."""
    delivered, waiting = tracker.deliver_waiting()
    if delivered or waiting:
        print(f"note: {delivered} runs that waited are logged now, {waiting} still wait", file=sys.stderr)
    return not waiting


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


def _check_tracking(config: DictConfig) -> None:
    """ConfigError on an address that no store can have; the password of one that a file names is masked for Hydra."""
    tracker = build_tracker(config)
    if isinstance(tracker, MLflow) and (masking := override_of(tracker.uri)) and masking not in sys.argv:
        sys.argv.append(masking)
    try:
        tracker.check()
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_launcher(config: DictConfig) -> None:
    package = str(config.hydra.launcher._target_).rpartition(".")[0]
    try:
        found = find_spec(package) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        name = config.hydra.runtime.choices["hydra/launcher"]
        extra = "ray" if name.startswith("ray") else "sweep"
        raise CompositionError(f"hydra/launcher={name} needs a package: pip install 'slimrun[{extra}]'")


def _check_writable(folder: Path) -> None:
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f"hydra.run.dir={folder}: {existing} cannot be written; choose another with hydra.run.dir=DIR"
        )
