"""Quantization, lossless coding and the frameworks that hold the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slimrun.ops.framework.base import LoadedModel


def load_bundle(
    folder: str | Path, device: str = "cpu", trust_remote_code: bool = False, framework: str = "pytorch"
) -> LoadedModel:
    """The running model of a bundle, from nothing but its folder; ValueError when a file of it is damaged.

    `framework` ("pytorch" or "mindspore") runs it, whichever made it. `trust_remote_code` runs the Python code that the
    bundle of a custom model carries or names; only for bundles you trust.
    """
    from slimrun.ops.framework.base import Device, Framework
    from slimrun.ops.framework.mindspore import MindSpore
    from slimrun.ops.framework.pytorch import PyTorch

    known: dict[str, Framework] = {"pytorch": PyTorch(), "mindspore": MindSpore()}
    if framework not in known:
        raise ValueError(f"framework={framework} is not known; allowed: {', '.join(known)}")
    return known[framework].restore(Path(folder), Device(name=device, type=device), trust_remote_code)
