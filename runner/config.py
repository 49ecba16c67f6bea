"""From a composed configuration to the objects of a run, with one clear line for everything that is wrong in it."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, cast

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from slimrun.evaluation.gate import Policy
from slimrun.ops.model.base import Outline
from slimrun.runner import policy
from slimrun.runner.experiment import Experiment
from slimrun.runner.overrides import how_to_write
from slimrun.runner.tracking.base import Tracker

CONFIG_MODULE, CONFIG_NAME, VERSION_BASE = "slimrun.conf", "config", "1.3"
SEVERAL = ("task", "export")  # groups of which several are chosen
GATE = "gate"  # the file of a policy
HOW_SMALL = "how_small"  # null, or what a search walks
TYPE_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


class ConfigError(ValueError):
    """The configuration is wrong; the message is one line that says what and what to do."""


class CompositionError(ConfigError):
    """It is wrong before any value is looked at: a choice, key or type that does not exist."""


def composed(
    overrides: Sequence[str],
    config_name: str | None = None,
    config_dir: str | None = None,
    *,
    mode: RunMode = RunMode.RUN,
    sweeps_allowed: bool = False,
) -> DictConfig:
    """The configuration of one job, or what all of a multirun have in common, Hydra's own node included.

    CompositionError when it cannot be composed.
    """
    with composing(overrides, config_name, config_dir) as hydra:
        return hydra.compose_config(
            config_name or CONFIG_NAME,
            list(overrides),
            mode,
            from_shell=False,
            validate_sweep_overrides=not sweeps_allowed,
        )


@contextmanager
def composing(overrides: Sequence[str], config_name: str | None, config_dir: str | None) -> Iterator[Hydra]:
    """Hydra as its command line sets it up; what it raises about these overrides is a CompositionError."""
    version.setbase(VERSION_BASE)
    search_path = create_config_search_path(f"pkg://{CONFIG_MODULE}")
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise CompositionError(f"--config-dir={config_dir}: no such folder")
        path = f"file://{Path(config_dir).absolute()}"
        search_path.prepend("command-line", path, anchor=SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("slimrun", search_path)
    except ConfigError:
        raise
    except MissingConfigException as error:
        raise CompositionError(_no_such_choice(error)) from error
    except OverrideParseException as error:
        raise CompositionError(f"{error.override}: {how_to_write(str(error.override))}") from error
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
        raise CompositionError(_no_such_key(error, overrides, config_name, config_dir)) from error
    except Exception as error:  # Hydra and OmegaConf trip over values of kinds they do not expect
        raise CompositionError(_no_choice(error, overrides)) from error
    finally:
        GlobalHydra.instance().clear()


def typed(overrides: Any) -> list[str]:
    """Overrides of Hydra's node as the user typed them: what they refer to stays a reference."""
    return [str(item) for item in cast(list[object], OmegaConf.to_container(overrides, resolve=False))]


def build(config: DictConfig) -> Experiment:
    """The experiment that a composed configuration describes.

    Every group is checked against the dataclass it constructs: unknown keys and wrong types raise CompositionError,
    values that a constructor refuses raise ConfigError.
    """
    _check_references(config)
    fields = dict.fromkeys(field.name for field in dataclasses.fields(Experiment))  # in order: which error is first
    for key in map(str, config):
        if key not in {*fields, "hydra"}:
            raise CompositionError(f"{key}: no such key{_did_you_mean(key, fields)}")
    arguments: dict[str, Any] = {}
    for name in (name for name in fields if name not in (*SEVERAL, GATE, HOW_SMALL)):
        value = config.get(name)
        arguments[name] = construct(value, name) if isinstance(value, DictConfig) else _scalar(config, name)
    tasks = config.get("task")
    if not isinstance(tasks, DictConfig) or not tasks:
        raise CompositionError("task: choose at least one, e.g. task=[perplexity]")
    for group in SEVERAL:
        chosen = config.get(group)
        if not isinstance(chosen, DictConfig):
            raise CompositionError(f"{group}: expected choices of this group, e.g. {group}=[NAME]")
        arguments[group] = {name: construct(chosen[name], f"{group}.{name}") for name in map(str, chosen)}
    arguments[GATE] = _policy(config.get(GATE))
    arguments[HOW_SMALL] = None if config.get(HOW_SMALL) is None else construct(config.how_small, HOW_SMALL)
    groups = [*arguments["task"], "size", "compress", "fidelity", "time", "memory"]
    for key in arguments["sweep"].objectives:
        if not key.startswith(tuple(f"{group}/" for group in groups)):
            raise CompositionError(
                f"sweep.objectives=[{key}]: no result of this run; allowed: {'/..., '.join(groups)}/..."
            )
    return Experiment(**arguments)


def checked(experiment: Experiment) -> Outline:
    """The model's outline; ConfigError on what can be seen to be wrong before weights load."""
    try:
        return experiment.check()
    except ValueError as error:
        raise ConfigError(str(error)) from error


def build_tracker(config: DictConfig) -> Tracker:
    """The tracker alone: the other values of a job may still be refused."""
    return cast(Tracker, construct(config.tracking, "tracking"))


def construct(node: Any, key: str) -> Any:
    """The dataclass that `node._target_` names, built from the other keys of the node; so are nodes inside it."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise CompositionError(f"{key}: expected a choice of this group, e.g. {key.split('.')[0]}=NAME")
    inside = {
        name: construct(child, f"{key}.{name}")
        for name, child in ((str(name), child) for name, child in node.items())
        if isinstance(child, DictConfig) and "_target_" in child
    }
    try:
        target = get_class(node["_target_"])
        values = {name: value for name, value in _plain(node).items() if name not in {"_target_", *inside}}
        schema = OmegaConf.structured(target)
        merged = _plain(OmegaConf.merge(schema, values))
        merged = {name: merged[name] for name in values} | inside
    except ConfigKeyError as error:
        known = [field.name for field in dataclasses.fields(target)]
        raise CompositionError(
            f"{key}.{error.full_key}: no such key{_did_you_mean(str(error.full_key), known, f'{key}.')}"
        ) from error
    except ValidationError as error:
        raise CompositionError(_wrong_type(error, key, target, values)) from error
    except (OmegaConfBaseException, HydraException) as error:
        raise CompositionError(f"{key}: {_line(error)}") from error
    try:
        return target(**merged)
    except ValueError as error:
        raise ConfigError(f"{key}.{error}") from error


def _check_references(config: DictConfig) -> None:
    """CompositionError when a value refers to something that is not there, or is still to be given (???)."""
    for key in map(str, config):
        if key == "hydra":
            continue
        try:
            node = config[key]
            if isinstance(node, Container):
                OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise CompositionError(f"{error.full_key or key}: {_line(error)}") from error


def _policy(path: Any) -> Policy | None:
    """The policy of a gate; None without one."""
    if path is not None and not isinstance(path, str):
        raise CompositionError(f"gate={path}: expected the path of a policy, e.g. gate=policy.yaml")
    try:
        return policy.read(path) if path else None
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _scalar(config: DictConfig, name: str) -> Any:
    """A key of the top level that holds a plain value of the type its field says."""
    field = next(field for field in dataclasses.fields(Experiment) if field.name == name)
    value, kind = config.get(name), str(field.type)
    if kind not in TYPE_NAMES:
        raise CompositionError(f"{name}: expected a choice of this group, e.g. {name}=NAME")
    if type(value).__name__ != kind:
        raise CompositionError(f"{name}={value}: expected {TYPE_NAMES[kind]}")
    return value


def _plain(node: Any) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def _wrong_type(error: ValidationError, key: str, target: type, values: dict[str, Any]) -> str:
    name = str(error.full_key)
    types = {field.name: str(field.type) for field in dataclasses.fields(target)}
    kind = types.get(re.split(r"[.\[]", name)[0], "another type")
    value = values.get(name, "...")
    return f"{key}.{name}={value}: expected {TYPE_NAMES.get(kind, kind)}"


def _no_such_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    if group.startswith("hydra/"):
        return (
            f"{group}={choice}: no such choice; allowed: {', '.join(error.options or [])} "
            "(optuna, joblib and submitit come with pip install 'slimrun[sweep]', ray with 'slimrun[ray]')"
        )
    options = error.options or sorted(
        file.name.removesuffix(".yaml")
        for file in resources.files(CONFIG_MODULE).joinpath(group).iterdir()
        if file.name.endswith(".yaml")
    )
    return f"{group or 'config'}={choice}: no such choice; allowed: {', '.join(options)}"


def _no_choice(error: Exception, overrides: Sequence[str]) -> str:
    """The line for a group that is set to nothing or to a number."""
    groups = {item.name for item in resources.files(CONFIG_MODULE).iterdir() if item.is_dir()}
    named = [item for item in overrides if item.partition("=")[0] in groups and not re.search(r"=\W*[a-z]\w*", item)]
    named += [item for item in overrides if item.endswith("=null") and item not in named]
    if not named:
        key = re.search(r"full_key: (\S+)", str(error))
        return f"{key.group(1)}: {_line(error)}" if key else _line(error)
    return f"{named[0]}: expected a choice of this group, e.g. {named[0].partition('=')[0]}=NAME"


def _no_such_key(error: Exception, overrides: Sequence[str], config_name: str | None, config_dir: str | None) -> str:
    """The line for an override whose key is not there, with near ones found in what composes without it."""
    if several := re.search(r"Ambiguous value for argument '(.+)'", str(error)):
        return f"{several.group(1)}: several values are several jobs, add -m; a list is written key=[a,b]"
    match = re.search(r"Could not override '([^']+)'", str(error))
    if match is None:
        return _line(error)
    key = match.group(1)
    rest = [item for item in overrides if item.lstrip("+~").partition("=")[0] != key]
    parent, _, name = key.rpartition(".")
    if len(rest) == len(overrides):
        return f"{key}: no such key"
    if elsewhere := _choices_with(parent, name):
        return f"{key}: this choice has no such key; {parent}={', '.join(elsewhere)} have it"
    node = OmegaConf.select(composed(rest, config_name, config_dir), parent) if parent else None
    siblings = [str(item) for item in node if item != "_target_"] if isinstance(node, DictConfig) else []
    hint = _did_you_mean(name, siblings, f"{parent}." if parent else "")
    return f"{key}: no such key{hint}" + (f"; allowed: {', '.join(siblings)}" if siblings and not hint else "")


def _choices_with(group: str, key: str) -> list[str]:
    """The choices of a group that have a key of their own."""
    folder = resources.files(CONFIG_MODULE).joinpath(group)
    if not group or not folder.is_dir():
        return []
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
    held = {file.name: OmegaConf.create(file.read_text(encoding="utf-8")) for file in files}
    return sorted(name.removesuffix(".yaml") for name, node in held.items() if key in node)


def _did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _line(error: BaseException) -> str:
    """First line of the error, or of what caused it: Hydra wraps some in an exception without a message."""
    text = str(error).strip()
    return _line(error.__cause__) if not text and error.__cause__ else text.split("\n")[0]
