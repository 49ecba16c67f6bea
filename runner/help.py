"""What `slimrun --help` says of the choices: the first comment of each yaml, which is where it stands once."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from slimrun.runner.config import CONFIG_MODULE

GROUPS = ("model", "framework", "quant", "compress", "device", "task", "export", "tracking", "experiment")
PACKAGE = "@package"  # begins a comment that speaks to Hydra
SUFFIX = ".yaml"


def choices(config_dir: str | None = None) -> str:
    """Groups in the order of a run, and under each a line a choice; those of the user's own `config_dir` too."""
    roots: list[Traversable] = [resources.files(CONFIG_MODULE)]
    roots += [Path(config_dir)] if config_dir else []
    found = {group: dict(entry for root in roots for entry in _lines(root.joinpath(group))) for group in GROUPS}
    width = max(len(name) for lines in found.values() for name in lines)
    return "\n".join(
        f"{group}=\n" + "".join(f"  {name:{width}}  {line}\n".rstrip(" ") for name, line in sorted(lines.items()))
        for group, lines in found.items()
    )


def _lines(group: Traversable) -> Iterator[tuple[str, str]]:
    """(choice, what it is) of a folder of yamls."""
    for file in group.iterdir() if group.is_dir() else ():
        if file.name.endswith(SUFFIX):
            yield file.name.removesuffix(SUFFIX), _first_comment(file.read_text(encoding="utf-8"))


def _first_comment(text: str) -> str:
    """The first comment line of a yaml that is for people, without its end."""
    lines = (line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    return next((line.rstrip(".") for line in lines if not line.startswith(PACKAGE)), "")
