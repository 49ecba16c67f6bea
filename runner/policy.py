"""`gate=POLICY.yaml`: the file of a policy, read with one clear line for what is wrong in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from slimrun.evaluation.gate import Policy, Rule

ALLOWED = "allowed: a YAML file such as {guardrail_pct: 20, tasks: {perplexity: {tier: required, margin: 2}}}"
KEYS = [field.name for field in dataclasses.fields(Policy)]


def read(path: str) -> Policy:
    """The policy in a file; ValueError that begins with `gate=PATH`."""
    try:
        content = OmegaConf.load(Path(path).expanduser())
        if not isinstance(content, DictConfig) or not isinstance(content.get("tasks"), DictConfig):
            raise ValueError("holds no tasks")
        if unknown := [str(key) for key in content if key not in KEYS]:
            raise ValueError(f"{unknown[0]}: no such key")
        tasks = {str(name): _rule(str(name), rule) for name, rule in content.tasks.items()}
        guardrail = content.get("guardrail_pct")
        return Policy(tasks, None if guardrail is None else float(guardrail))
    except OSError as error:
        raise ValueError(f"gate={path} cannot be read ({error.strerror}); {ALLOWED}") from None
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"gate={path}: {str(error).splitlines()[0]}; {ALLOWED}") from error


def _rule(name: str, node: Any) -> Rule:
    try:
        values: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(Rule), node or {}))
        return Rule(**values)
    except (OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"tasks.{name}: {str(error).splitlines()[0]}") from error
