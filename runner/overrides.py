"""What overrides say: how one is written, which command those of jobs make, what tells one job from the others."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

FLOAT = re.compile(r"-?\d+\.\d+")  # a search proposes numbers of 17 digits
CHOICES = ("model", "framework", "quant", "compress", "device", "experiment")
NAME_LENGTH = 60
FREE = (  # not part of a command
    "sweep.", "cache.", "tracking", "hydra.sweep.", "hydra.mode=", "hydra/launcher=", "hydra.launcher."
)  # fmt: skip


def how_to_write(override: str) -> str:
    """What to write instead of an override that Hydra cannot read: signs that are not plain letters want quotes."""
    key, equals, value = (part.strip() for part in override.replace("＝", "=").partition("="))
    if not equals or not key:
        return "not an override; write key=value"
    if re.search(r"\s\S+=", value):
        return f"several overrides in one word; write them apart: {' '.join(override.split())}"
    if value.startswith("[") and not value.endswith("]"):
        return f'a list ends with "]"; one with spaces is one word only in quotes: \'{key}=["...","..."]\''
    listed = value.startswith("[")
    items = [_in_quotes(item) for item in (value[1:-1].split(",") if listed else [value])]
    meant = f"{key}=[{','.join(items)}]" if listed else f"{key}={items[0]}"
    try:
        OverridesParser.create().parse_override(meant)
    except HydraException:
        return "not an override; write key=value"
    return f"signs other than plain letters want quotes, and these quotes of the shell; write {shlex.quote(meant)}"


def short_name(overrides: Sequence[str]) -> str:
    """The overrides as a name of at most `NAME_LENGTH` signs: last parts of keys and paths; how many more there are."""
    pairs = [item.lstrip("+").partition("=")[::2] for item in overrides]
    brief = [_brief(key, value.rpartition("/")[2], key.rpartition(".")[2]) for key, value in pairs]
    while len(" ".join(brief)) > NAME_LENGTH and brief[:-1]:
        brief.pop()
    name, more = " ".join(brief), len(overrides) - len(brief)
    name = name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH]}..."
    return f"{name} and {more} more" if more else name


def command_of(overrides: Sequence[str]) -> list[str]:
    """What makes a command line the same one: all but where it runs, what it keeps and how it treats failures."""
    return [item for item in overrides if not item.lstrip("+~").startswith(FREE)]


def _in_quotes(item: str) -> str:
    plain = item.strip().strip("\"'“”‘’")
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _brief(key: str, value: str, name: str) -> str:
    """An override with another name of its key; a choice says itself what it is."""
    value = f"{float(value):.3g}" if FLOAT.fullmatch(value) else value
    return value if key in CHOICES else f"{name}={value}"


def distinct(overrides: Sequence[Sequence[str]]) -> list[str]:
    """What each job's overrides say that not all jobs say, with keys as short as they stay unequal."""
    common = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    own = [[item for item in items if item not in common] for items in overrides]
    keys = sorted({item.partition("=")[0] for items in own for item in items})
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(keys, last)}

    def brief(item: str) -> str:
        key, _, value = item.partition("=")
        return _brief(key, value, short[key])

    return [", ".join(map(brief, items)) for items in own]
