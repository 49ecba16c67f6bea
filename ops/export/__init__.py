"""What other engines load: a bundle rewritten into their files, one target a module; see README.md here."""

from __future__ import annotations

import importlib
import pkgutil

from .base import Exported, Target

__all__ = ["Exported", "Target", "targets"]


def targets() -> dict[str, type[Target]]:
    """The targets of this package by what a user types, so that a new one is one file."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    classes = [Target]
    for target in classes:
        classes += target.__subclasses__()
    named = [target for target in classes if "name" in vars(target)]
    return {target.name: target for target in sorted(named, key=lambda target: target.name)}
