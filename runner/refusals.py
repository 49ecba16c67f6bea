"""What is said of a configuration that cannot be composed: one line for whatever Hydra, OmegaConf and YAML raise."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from yaml import MarkedYAMLError, YAMLError

from slimrun import conf

SEARCH = "a search for the smallest size is asked for by experiment=how_small"
HEADER = "# @package"  # says whose keys a yaml holds


def line(error: BaseException) -> str:
    """First line of the error, or of what caused it: Hydra wraps some in an exception without a message."""
    if isinstance(error, RecursionError):
        return "a value of a YAML file refers to itself; write it out"
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}, {fault(error)}"
    text = str(error).strip()
    return line(error.__cause__) if not text and error.__cause__ else text.split("\n")[0]


def fault(error: YAMLError) -> str:
    """Where in its file YAML found a fault, and which."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The hint at a near name; "" without one."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def no_such_choice(error: MissingConfigException, config_dir: str | None) -> str:
    """The line for a choice that is not there, with those of the user's own folder too."""
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    if group.startswith("hydra/"):
        return (
            f"{group}={choice}: no such choice; allowed: {', '.join(error.options or [])} "
            "(optuna, joblib and submitit come with pip install 'slimrun[sweep]', ray with 'slimrun[ray]')"
        )
    roots = [resources.files(conf), *([Path(config_dir)] if config_dir else [])]
    folders = [root.joinpath(group) for root in roots]
    files = [file.name for folder in folders if folder.is_dir() for file in folder.iterdir()]
    options = error.options or sorted({name.removesuffix(".yaml") for name in files if name.endswith(".yaml")})
    return f"{group or 'config'}={choice}: no such choice; allowed: {', '.join(options)}"


def no_node(key: str) -> str:
    """The line for a key that holds something else than the keys below it."""
    group = key.partition(".")[0]
    if key == "how_small":
        return f"{key}: expected null; {SEARCH}"
    if _is_group(group):
        return f"{key}: expected a choice of this group, e.g. {group}=NAME"
    return f"{key}: expected its keys, e.g. {key}.KEY=VALUE; leave {key} itself out"


def no_choices(config: DictConfig, group: str) -> str:
    """The line for a group of several that holds something else than choices."""
    overrides = [str(item) for item in OmegaConf.select(config, "hydra.overrides.task") or []]
    typed = next((item for item in reversed(overrides) if item.startswith(f"{group}=")), "")
    for source in OmegaConf.select(config, "hydra.runtime.config_sources") or []:
        for name in re.findall(r"[\w.-]+", typed.partition("=")[2]) if source.schema == "file" else ():
            file = Path(source.path, group, f"{name}.yaml")
            if file.is_file() and (wrong := _misplaced(file, f"{HEADER} {group}.{name}")):
                return f"{group}={name}: {file} {wrong}"
    chosen = config.get(group)
    nodes = dict(chosen.items()) if isinstance(chosen, DictConfig) else {}
    whole = [str(name) for name, node in nodes.items() if isinstance(node, DictConfig) and "_target_" in node]
    if bare := [str(name) for name in nodes if name not in whole]:
        if any(item.startswith(f"+{group}.{bare[0]}.") for item in overrides):
            return not_chosen(f"{group}.{bare[0]}", whole)
        return f"{group}.{bare[0]}._target_ is missing; allowed: the full name of a dataclass"
    return f"{group}: choose at least one, e.g. {group}=[{'perplexity' if group == 'task' else 'NAME'}]"


def not_chosen(key: str, chosen: Iterable[str]) -> str:
    """The line for a key below a choice that is not made, of a group of several."""
    group, name = key.split(".")[:2]
    return f"{key}: {group} {name} is not chosen; add it: {group}=[{','.join([*chosen, name])}]"


def no_choice(error: Exception, overrides: Sequence[str]) -> str:
    """The line for a group that is set to nothing or to a number."""
    named = [item for item in overrides if _is_group(item.partition("=")[0]) and not re.search(r"=\W*[a-z]\w*", item)]
    named += [item for item in overrides if item.endswith("=null") and item not in named]
    if not named:
        key = re.search(r"full_key: (\S+)", str(error))
        return f"{key.group(1)}: {line(error)}" if key else line(error)
    return f"{named[0]}: expected a choice of this group, e.g. {named[0].partition('=')[0]}=NAME"


def one_of_several(item: str) -> str:
    """The line for several choices of a group of which one is chosen."""
    group, _, choices = item.partition("=")
    return f"{item}: one choice of {group} makes a job, several are several jobs: -m {group}={choices.strip('[]')}"


def no_such_key(error: Exception, overrides: Sequence[str], composed: Callable[[list[str]], DictConfig]) -> str:
    """The line for an override whose key is not there, with near ones found in what composes without it."""
    if several := re.search(r"Ambiguous value for argument '(.+)'", str(error)):
        return f"{several.group(1)}: several values are several jobs, add -m; a list is written key=[a,b]"
    if merging := re.match(r"Error merging override (\S+)", str(error)):
        return f"{merging.group(1)}: its key holds another kind of value (a list, keys, or one value)"
    match = re.search(r"Could not override '([^']+)'", str(error))
    if match is None:
        return line(error)
    key = match.group(1)
    rest = [item for item in overrides if item.lstrip("+~").partition("=")[0] != key]
    parent, _, name = key.rpartition(".")
    if len(rest) == len(overrides):
        return f"{key}: no such key"
    if elsewhere := _choices_with(parent, name):
        have = "has" if len(elsewhere) == 1 else "have"
        return f"{key}: this choice has no such key; {parent}={', '.join(elsewhere)} {have} it"
    if parent == "how_small":
        return f"{key}: no such key; {SEARCH}"
    config = composed(rest)
    node = OmegaConf.select(config, parent) if parent else None
    if node is None and parent.startswith(("task.", "export.")):
        return not_chosen(key, map(str, config[parent.split(".")[0]]))
    if isinstance(node, DictConfig) and not node:
        given = next(item for item in overrides if item not in rest)
        return f"{key}: no such key yet; a new one is added with +, +{given.lstrip('+')}"
    siblings = [str(item) for item in node if item != "_target_"] if isinstance(node, DictConfig) else []
    hint = did_you_mean(name, siblings, f"{parent}." if parent else "")
    return f"{key}: no such key{hint}" + (f"; allowed: {', '.join(siblings)}" if siblings and not hint else "")


def _misplaced(file: Path, header: str) -> str:
    """Why the keys of a user's file are not where its choice has them; "" when they are."""
    text = file.read_text(encoding="utf-8")
    if not text.startswith(HEADER):
        mark = ", before which it has a byte order mark" if text.startswith(f"\ufeff{HEADER}") else ""
        return f"lacks `{header}` in its first line{mark}"
    return "" if isinstance(OmegaConf.create(text), DictConfig) else "holds a list; allowed: keys with values"


def _is_group(name: str) -> bool:
    return bool(name) and resources.files(conf).joinpath(name).is_dir()


def _choices_with(group: str, key: str) -> list[str]:
    """The choices of a group that have a key of their own."""
    if not _is_group(group):
        return []
    files = [file for file in resources.files(conf).joinpath(group).iterdir() if file.name.endswith(".yaml")]
    held = {file.name: OmegaConf.create(file.read_text(encoding="utf-8")) for file in files}
    return sorted(name.removesuffix(".yaml") for name, node in held.items() if key in node)
