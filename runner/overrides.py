"""What the overrides of jobs say: which command they make, and what tells one job from the others."""

from __future__ import annotations

import re
from collections.abc import Sequence

FLOAT = re.compile(r"-?\d+\.\d+")  # a search proposes numbers of 17 digits
CHOICES = ("model", "framework", "quant", "compress", "device", "experiment")  # a choice says itself what it is
FREE = (  # not part of a command
    "sweep.", "cache.", "tracking", "hydra.sweep.", "hydra.mode=", "hydra/launcher=", "hydra.launcher."
)  # fmt: skip


def command_of(overrides: Sequence[str]) -> list[str]:
    """What makes a command line the same one: all but where it runs, what it keeps and how it treats failures."""
    return [item for item in overrides if not item.lstrip("+~").startswith(FREE)]


def distinct(overrides: Sequence[Sequence[str]]) -> list[str]:
    """What each job's overrides say that not all jobs say, with keys as short as they stay unequal."""
    common = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    own = [[item for item in items if item not in common] for items in overrides]
    keys = sorted({item.partition("=")[0] for items in own for item in items})
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(keys, last)}

    def brief(item: str) -> str:
        key, _, value = item.partition("=")
        if FLOAT.fullmatch(value):
            value = f"{float(value):.3g}"
        return value if key in CHOICES else f"{short[key]}={value}"

    return [", ".join(map(brief, items)) for items in own]
