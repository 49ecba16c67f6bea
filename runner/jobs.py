"""What a command line asks for: one job, or those of a multirun, whatever way Hydra is told of it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from slimrun.runner.config import CompositionError, composed, composing, typed
from slimrun.runner.how_small import Dial, dial_of


@dataclass(frozen=True)
class Command:
    """The jobs, as lists of overrides that compose each of them."""

    jobs: list[list[str]]
    config: DictConfig  # composed without what differs between jobs; only its node `hydra` is whole
    multirun: bool = False
    sweep: tuple[str, ...] = ()  # overrides that make a multirun the same as another: the sweeper's and the user's
    listed: bool = False  # the jobs of the multirun are these; else its sweeper chooses them as it goes


def read(arguments: Namespace) -> Command:
    """The command of Hydra's arguments; CompositionError when it cannot be composed."""
    overrides, source = list(arguments.overrides), (arguments.config_name, arguments.config_dir)
    if not arguments.multirun:
        try:
            config = composed(overrides, *source)
        except CompositionError:
            if not _multirun_by_config(overrides, *source):
                raise
        else:
            if config.hydra.mode != RunMode.MULTIRUN:
                return Command([overrides], config)
    config = composed(overrides, *source, mode=RunMode.MULTIRUN)
    with composing(overrides, *source) as hydra:
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        sweep = [*params, *typed(config.hydra.overrides.task)]
        parsed = OverridesParser.create(hydra.config_loader).parse_overrides(sweep)
        listed = config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}")
        if listed:
            jobs = _product(parsed, hydra.config_loader)
        else:
            _check_directions(config)
            jobs = [[str(item.input_line) for item in parsed if not item.is_sweep_override()]]
        _check_trials(config)
        if dial := dial_of(config):
            if several := [item for item in parsed if item.is_sweep_override()]:
                told = f"{several[0].input_line}: a search turns one key alone ({dial.asked.key})"
                raise CompositionError(f"{told}; name one value, and ask for each in a command of its own")
            jobs = [[*job, _first_on(dial, job, config.hydra.sweeper.n_trials)] for job in jobs]
    _check_launcher(config)
    own = typed(config.hydra.overrides.hydra)
    return Command([[*own, *job] for job in jobs], config, True, (*params, *overrides), listed)


def _multirun_by_config(overrides: Sequence[str], config_name: str | None, config_dir: str | None) -> bool:
    """Whether a file or an override sets hydra.mode, of what cannot be composed as a single job."""
    try:
        config = composed(overrides, config_name, config_dir, mode=RunMode.MULTIRUN, sweeps_allowed=True)
    except CompositionError:
        return False
    return bool(config.hydra.mode == RunMode.MULTIRUN)


def _product(overrides: Sequence[Override], loader: ConfigLoader) -> list[list[str]]:
    """Hydra's own jobs for these overrides."""
    for item in overrides:
        if item.is_sweep_override() and not item.is_discrete_sweep():
            key = item.get_key_element()
            raise CompositionError(
                f"{item.input_line}: only a search draws from an interval (hydra/sweeper=optuna); "
                f"without one name the values, e.g. {key}=1,2"
            )
        if isinstance(item.value(), Glob) and not list(item.sweep_iterator()):
            options = loader.get_group_options(item.key_or_group)
            allowed = f"allowed: {', '.join(options)}" if options else f"{item.key_or_group} is no group"
            raise CompositionError(f"{item.input_line} matches no choice; {allowed}")
        if item.is_sweep_override() and not list(item.sweep_iterator()):
            raise CompositionError(f"{item.input_line} names no value, so there is no job; name one at least")
    return [job for batch in BasicSweeper.split_arguments(list(overrides), max_batch_size=None) for job in batch]


def _first_on(dial: Dial, overrides: Sequence[str], tries: int) -> str:
    """What the first job of a search sets."""
    if given := [item for item in overrides if item.lstrip("+").startswith(f"{dial.asked.key}=")]:
        raise CompositionError(f"{given[0]}: how_small turns {dial.asked.key} itself; leave it out")
    return dial.next_override([], tries) or ""


def _check_trials(config: DictConfig) -> None:
    """A search of as many jobs as can be counted."""
    tries = config.hydra.sweeper.get("n_trials", 1)
    if type(tries) is not int or tries < 1:
        raise CompositionError(f"hydra.sweeper.n_trials={tries} is out of range; allowed: a whole number, 1 or more")


def _check_directions(config: DictConfig) -> None:
    """A search that is told something else than it asks for would end after its first job."""
    wanted, told = config.hydra.sweeper.get("direction"), OmegaConf.select(config, "sweep.objectives") or []
    directions = len(wanted) if isinstance(wanted, ListConfig) else 1
    if wanted is not None and directions != len(told):
        raise CompositionError(
            f"sweep.objectives={told}: hydra.sweeper.direction asks for {directions}; name as many keys of results.json"
        )


def _check_launcher(config: DictConfig) -> None:
    package = str(config.hydra.launcher._target_).rpartition(".")[0]
    try:
        installed = find_spec(package) is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        name = config.hydra.runtime.choices["hydra/launcher"]
        extra = "ray" if name.startswith("ray") else "sweep"
        raise CompositionError(f"hydra/launcher={name} needs a package: pip install 'slimrun[{extra}]'")
