"""Where the values come from that a message speaks of and the user did not type: a preset, or the defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from omegaconf import DictConfig, OmegaConf

from slimrun.runner.config import HOW_SMALL, ConfigError, composed, typed

KEY = re.compile(r"(?<![\w./-])[a-z_]+(?:\.\w+)+")
PRESET = "experiment"


@contextmanager
def origins_told(config: DictConfig, config_name: str | None = None, config_dir: str | None = None) -> Iterator[None]:
    """A ConfigError about `config` ends with where it has the values from that were not typed."""
    try:
        yield
    except ConfigError as error:
        overrides = typed(config.hydra.overrides.task)
        # without the preset there is nothing below how_small
        rest = [item for item in overrides if not item.startswith((f"{PRESET}=", f"{HOW_SMALL}."))]
        plain = composed(rest, config_name, config_dir) if len(rest) < len(overrides) else config
        told = origins(str(error), config, plain, overrides)
        if not told:
            raise
        raise type(error)(f"{error} ({'; '.join(told)})") from error


def origins(message: str, config: DictConfig, plain: DictConfig, overrides: Sequence[str]) -> list[str]:
    """One clause for each key in the message that no override sets; `plain` is the configuration without the preset."""
    keys = {item.lstrip("+~").partition("=")[0] for item in overrides}
    clauses = []
    for key in dict.fromkeys(KEY.findall(message)):
        value, unset = (OmegaConf.select(each, key, throw_on_resolution_failure=False) for each in (config, plain))
        if value is None or any(key == item or key.startswith(f"{item}.") for item in keys):
            continue
        if unset != value:
            clauses.append(f"{key} comes from {PRESET}={config.hydra.runtime.choices[PRESET]}")
        elif f"{key}={value}" in message:
            clauses.append(f"{key} has its default")
    return clauses
