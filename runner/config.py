"""From a composed configuration to the objects of a run, with one clear line for everything that is wrong in it."""

from __future__ import annotations

import dataclasses
import pydoc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast, get_type_hints

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from slimrun.evaluation.gate import Policy
from slimrun.ops.model.base import Outline
from slimrun.runner import policy, refusals
from slimrun.runner.experiment import Experiment
from slimrun.runner.kinds import WORDS, fits, in_words, shown
from slimrun.runner.overrides import how_to_write
from slimrun.runner.refusals import did_you_mean, line, no_node
from slimrun.runner.tracking.base import Tracker

CONFIG_MODULE, CONFIG_NAME, VERSION_BASE = "slimrun.conf", "config", "1.3"
SEVERAL = ("task", "export")  # groups of which several are chosen, of tasks one at least
ALONE = ("model", "framework", "quant", "compress", "device", "tracking")  # groups of which one is chosen
GATE = "gate"  # the file of a policy
HOW_SMALL = "how_small"  # null, or what a search walks
YAML_WORDS = '; YAML reads no, yes, off and on as false and true: put them in quotes, e.g. "no"'


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
    for item in overrides:
        if re.match(rf"({'|'.join(ALONE)})=\[.+,", item):
            raise CompositionError(refusals.one_of_several(item))
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
        raise CompositionError(refusals.no_such_choice(error, config_dir)) from error
    except OverrideParseException as error:
        raise CompositionError(f"{error.override}: {how_to_write(str(error.override))}") from error
    except (YAMLError, RecursionError) as error:
        raise CompositionError(line(error)) from error
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
        without = partial(composed, config_name=config_name, config_dir=config_dir)
        raise CompositionError(refusals.no_such_key(error, overrides, without)) from error
    except Exception as error:  # Hydra and OmegaConf trip over values of kinds they do not expect
        raise CompositionError(refusals.no_choice(error, overrides)) from error
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
            raise CompositionError(f"{key}: no such key{did_you_mean(key, fields)}")
    arguments: dict[str, Any] = {}
    for name in (name for name in fields if name not in (*SEVERAL, GATE, HOW_SMALL)):
        value = config.get(name)
        arguments[name] = construct(value, name) if isinstance(value, DictConfig) else _scalar(config, name)
    for group in SEVERAL:
        chosen = config.get(group)
        found = list(chosen.values()) if isinstance(chosen, DictConfig) else [chosen]
        if not all(map(_is_choice, found)) or (group == "task" and not found):
            raise CompositionError(refusals.no_choices(config, group))
        arguments[group] = {name: construct(chosen[name], f"{group}.{name}") for name in map(str, chosen)}
    arguments[GATE] = _policy(config.get(GATE))
    arguments[HOW_SMALL] = None if config.get(HOW_SMALL) is None else construct(config.how_small, HOW_SMALL)
    groups = [*arguments["task"], "size", "compress", "fidelity", "time", "memory"]
    for key in arguments["sweep"].objectives:
        if not key.startswith(tuple(f"{group}/" for group in groups)):
            raise CompositionError(
                f"sweep.objectives=[{key}]: no result of this run; allowed: {'/..., '.join(groups)}/..."
            )
    try:
        return Experiment(**arguments)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def checked(experiment: Experiment) -> Outline:
    """The model's outline; ConfigError on what can be seen to be wrong before weights load."""
    try:
        return experiment.check()
    except ValueError as error:
        raise ConfigError(str(error)) from error


def build_tracker(config: DictConfig) -> Tracker:
    """The tracker alone: the other values of a job may still be refused."""
    return cast(Tracker, construct(config.get("tracking"), "tracking"))


def construct(node: Any, key: str) -> Any:
    """The dataclass that `node._target_` names, built from the other keys of the node; so are nodes inside it."""
    if not _is_choice(node):
        raise CompositionError(no_node(key))
    inside = {str(name): construct(child, f"{key}.{name}") for name, child in node.items() if _is_choice(child)}
    try:
        values = {name: value for name, value in _plain(node).items() if name not in inside}
        target = _target(values.pop("_target_"), key)
        kinds = get_type_hints(target)
        if wrong := [name for name, value in values.items() if name in kinds and not fits(value, kinds[name])]:
            raise CompositionError(_wrong_kind(f"{key}.{wrong[0]}", values[wrong[0]], kinds[wrong[0]]))
        merged = _plain(OmegaConf.merge(OmegaConf.structured(target), values))
        merged = {name: merged[name] for name in values} | inside
    except ConfigKeyError as error:
        known = [field.name for field in dataclasses.fields(target)]
        raise CompositionError(
            f"{key}.{error.full_key}: no such key{did_you_mean(str(error.full_key), known, f'{key}.')}"
        ) from error
    except ValidationError as error:
        name = re.split(r"[.\[]", str(error.full_key))[0]
        raise CompositionError(_wrong_kind(f"{key}.{name}", values.get(name), kinds.get(name))) from error
    except (OmegaConfBaseException, HydraException) as error:
        raise CompositionError(f"{key}: {line(error)}") from error
    for field in dataclasses.fields(target):
        if field.init and field.name not in merged and field.default is field.default_factory is dataclasses.MISSING:
            raise CompositionError(f"{key}.{field.name} is missing; allowed: {in_words(kinds[field.name])}")
    try:
        return target(**merged)
    except ValueError as error:
        raise ConfigError(f"{key}.{error}") from error


def kind_of(config: DictConfig, key: str) -> Any:
    """The type of the field that a key sets; None of keys that no dataclass has."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else None
    if not isinstance(node, DictConfig) or not _is_choice(node):
        return None
    return get_type_hints(_target(node["_target_"], parent)).get(name)


def _is_choice(node: Any) -> bool:
    return isinstance(node, DictConfig) and "_target_" in node


def _target(name: Any, key: str) -> type:
    """The dataclass of this name."""
    try:
        target = pydoc.locate(name) if isinstance(name, str) else None
    except pydoc.ErrorDuringImport as error:
        raise CompositionError(f"{key}._target_={name} cannot be imported ({error.value})") from error
    if not isinstance(target, type) or not dataclasses.is_dataclass(target):
        told = "nothing of this name can be imported" if target is None else "this is no dataclass"
        raise CompositionError(f"{key}._target_={shown(name)}: {told}; allowed: the full name of a dataclass")
    return target


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
            raise CompositionError(f"{error.full_key or key}: {line(error)}") from error


def _policy(path: Any) -> Policy | None:
    """The policy of a gate; None without one."""
    if path is not None and not isinstance(path, str):
        raise CompositionError(f"gate={shown(path)}: expected the path of a policy, e.g. gate=policy.yaml")
    try:
        return None if path is None else policy.read(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _scalar(config: DictConfig, name: str) -> Any:
    """A key of the top level that holds a plain value of the type its field says."""
    value, kind = config.get(name), get_type_hints(Experiment)[name]
    if kind not in WORDS:
        raise CompositionError(no_node(name))
    if type(value) is not kind:
        raise CompositionError(_wrong_kind(name, value, kind))
    return value


def _plain(node: Any) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def _wrong_kind(key: str, value: Any, kind: Any) -> str:
    """The line for a value that is not of the kind of its key."""
    words = in_words(kind)
    of_yaml = YAML_WORDS if WORDS[str] in words and re.search(r"\b(true|false)\b", shown(value)) else ""
    return f"{key}={shown(value)}: expected {words}{of_yaml}"
