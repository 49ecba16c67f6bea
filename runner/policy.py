"""`gate=POLICY.yaml`: the file of a policy, read with one clear line for what is wrong in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from slimrun.evaluation.gate import TIERS, Policy, Rule
from slimrun.runner.kinds import shown
from slimrun.runner.refusals import did_you_mean, fault, line

EXAMPLE = "a policy is a YAML file such as {guardrail_pct: 20, tasks: {perplexity: {tier: required, margin: 2}}}"
KEYS = [field.name for field in dataclasses.fields(Policy)]
RULE_KEYS = [field.name for field in dataclasses.fields(Rule)]


def read(path: str) -> Policy:
    """The policy in a file; ValueError that begins with `gate=PATH`."""
    try:
        if not path.strip():
            raise ValueError("names no file")
        content = OmegaConf.load(Path(path).expanduser())
        values: Any = OmegaConf.to_container(content, resolve=True)
        if not isinstance(content, DictConfig) or not isinstance(values.get("tasks"), dict):
            raise ValueError("holds no tasks")
        _known(values, KEYS)
        tasks = {str(name): _rule(f"tasks.{name}", rule) for name, rule in values["tasks"].items()}
        return Policy(tasks, _number("guardrail_pct", values.get("guardrail_pct")))
    except OSError as error:
        raise ValueError(f"gate={path} cannot be read ({error.strerror or line(error)}); {EXAMPLE}") from None
    except YAMLError as error:
        raise ValueError(f"gate={path}: {fault(error)}; {EXAMPLE}") from error
    except (OmegaConfBaseException, RecursionError, RuntimeError, ValueError) as error:
        raise ValueError(f"gate={path}: {line(error)}; {EXAMPLE}") from error


def _rule(key: str, node: Any) -> Rule:
    """The rule of a task; a task without anything said of it is required."""
    if node is None:
        return Rule()
    if not isinstance(node, dict):
        raise ValueError(f"{key}={shown(node)}: expected keys; allowed: {', '.join(RULE_KEYS)}")
    _known(node, RULE_KEYS, f"{key}.")
    tier = node.get("tier", Rule.tier)
    if tier not in TIERS:
        raise ValueError(f"{key}.tier={shown(tier)} is unknown; allowed: {', '.join(TIERS)}")
    return Rule(tier, _number(f"{key}.margin", node.get("margin")))


def _number(key: str, value: Any) -> float | None:
    """A number that bounds something."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{key}={shown(value)}: expected a number; allowed: 0 or more, finite, or null")
    return float(value)


def _known(values: dict[Any, Any], keys: Sequence[str], prefix: str = "") -> None:
    if unknown := [str(key) for key in values if key not in keys]:
        near = did_you_mean(unknown[0], keys, prefix)
        raise ValueError(f"{prefix}{unknown[0]}: no such key{near}; allowed: {', '.join(keys)}")
