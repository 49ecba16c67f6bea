"""Where the values come from that a message speaks of and the user did not type: a preset, or the defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from omegaconf import DictConfig, OmegaConf

from slimrun.runner.config import HOW_SMALL, CompositionError, ConfigError, composed, typed

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
        plain = config
        if len(rest) < len(overrides):
            try:
                plain = composed(rest, config_name, config_dir)
            except CompositionError:  # a key that only the preset's choice has
                choices = [item for item in rest if "." not in item.partition("=")[0]]
                plain = composed(choices, config_name, config_dir)
        told = origins(str(error), config, plain, overrides)
        if not told:
            raise
        raise type(error)(f"{error} ({'; '.join(told)})") from error


def origins(message: str, config: DictConfig, plain: DictConfig, overrides: Sequence[str]) -> list[str]:
    """One clause for each key in the message that no override sets; `plain` is the configuration without the preset."""
    keys = {item.lstrip("+~").partition("=")[0] for item in overrides}
    clauses = []
    preset = next((item for item in overrides if item.startswith(f"{PRESET}=")), PRESET)
    for key in dict.fromkeys(KEY.findall(message)):
        value, unset = (OmegaConf.select(each, key, throw_on_resolution_failure=False) for each in (config, plain))
        if value is None or any(key == item or key.startswith(f"{item}.") for item in keys):
            continue
        if unset != value:
            clauses.append(f"{key} comes from {preset}")
        elif f"{key}={value}" in message:
            clauses.append(f"{key} has its default")
    return clauses
