"""What `slimrun --help` says of the choices: the first comment of each yaml, which is where it stands once."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from slimrun.runner.config import CONFIG_MODULE, CONFIG_NAME

PACKAGE = "@package"  # begins a comment that speaks to Hydra
SUFFIX = ".yaml"


def choices(config_dir: str | None = None) -> str:
    """Each group, and under it a line a choice, the default ones marked; those of the user's own `config_dir` too."""
    roots: list[Traversable] = [resources.files(CONFIG_MODULE)]
    roots += [Path(config_dir)] if config_dir else []
    defaults = default_choices()
    groups = {group: dict(entry for root in roots for entry in _lines(root.joinpath(group))) for group in defaults}
    width = max(len(name) for lines in groups.values() for name in lines)

    def told(group: str) -> str:
        lines = sorted(groups[group].items())
        marks = ("*" if name in defaults[group] else " " for name, _ in lines)
        return "".join(f"{mark} {name:{width}}  {line}\n" for mark, (name, line) in zip(marks, lines))

    return "\n".join(f"{group}=\n{told(group)}" for group in groups)


def default_choices() -> dict[str, list[str]]:
    """Group -> what is chosen when nothing is said, in the order of the defaults list."""
    text = resources.files(CONFIG_MODULE).joinpath(f"{CONFIG_NAME}{SUFFIX}").read_text(encoding="utf-8")
    entries = [entry for entry in OmegaConf.create(text).defaults if isinstance(entry, DictConfig)]
    groups = {str(group): value for entry in entries for group, value in entry.items() if " " not in str(group)}
    return {group: list(value) if isinstance(value, ListConfig) else [value] for group, value in groups.items()}


def _lines(group: Traversable) -> Iterator[tuple[str, str]]:
    """(choice, what it is) of a folder of yamls."""
    for file in group.iterdir() if group.is_dir() else ():
        if file.name.endswith(SUFFIX):
            yield file.name.removesuffix(SUFFIX), _first_comment(file.read_text(encoding="utf-8"))


def _first_comment(text: str) -> str:
    """The first comment line of a yaml that is for people, without its end."""
    lines = (line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    return next((line.rstrip(".") for line in lines if not line.startswith(PACKAGE)), "")
