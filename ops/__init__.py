"""Quantization, lossless coding and the frameworks that hold the model.

from ops import Calibrator, Compressor, load_bundle
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ops.compress.compressor import Compressor
    from ops.framework.base import LoadedModel
    from ops.framework.pytorch import Calibrator

__all__ = ["Calibrator", "Compressor", "load_bundle"]


def load_bundle(
    folder: str | Path, device: str = "cpu", trust_remote_code: bool = False, framework: str = "pytorch"
) -> LoadedModel:
    """The running model of a bundle, from nothing but its folder; ValueError when a file of it is damaged.

    `framework` ("pytorch" or "mindspore") runs it, whichever made it. `trust_remote_code` runs the Python code that the
    bundle of a custom model carries or names; only for bundles you trust.
    """
    from ops.framework.base import Device, Framework
    from ops.framework.mindspore import MindSpore
    from ops.framework.pytorch import PyTorch

    known: dict[str, Framework] = {"pytorch": PyTorch(), "mindspore": MindSpore()}
    if framework not in known:
        raise ValueError(f"framework={framework} is not known; allowed: {', '.join(known)}")
    return known[framework].restore(Path(folder), Device(name=device, type=device), trust_remote_code)


def __getattr__(name: str) -> Any:
    """Imported on first use: `import ops.compress` alone must not pull torch and transformers."""
    if name == "Compressor":
        from ops.compress.compressor import Compressor

        return Compressor
    if name == "Calibrator":
        from ops.framework.pytorch import Calibrator

        return Calibrator
    raise AttributeError(f"module 'ops' has no attribute {name!r}")
