"""slimrun: sparse-quantize, losslessly compress, verify, evaluate and track large language models.

    from slimrun import Calibrator, Compressor, Experiment, load_bundle
    from slimrun import compress                        # the codec: encode, decode, decode_tile
    from slimrun.msmodelslim.pytorch import QuantConfig, Calibrator      # msModelSlim's names and keywords

Installed as `slimrun/__init__.py`. Everything is imported on first use: the codec alone pulls no torch. transformers
reads bundles from then on: `AutoModelForCausalLM.from_pretrained(BUNDLE)`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from slimrun.ops.framework.on_import import when_imported

if TYPE_CHECKING:
    from slimrun.ops import compress, load_bundle
    from slimrun.ops.compress.compressor import Compressor
    from slimrun.ops.framework.pytorch import Calibrator
    from slimrun.runner.experiment import Experiment

__all__ = ["Calibrator", "Compressor", "Experiment", "compress", "load_bundle"]

HOMES = {
    "Calibrator": "slimrun.ops.framework.pytorch",
    "Compressor": "slimrun.ops.compress.compressor",
    "Experiment": "slimrun.runner.experiment",
    "load_bundle": "slimrun.ops",
}

QUANTIZER = "slimrun.ops.framework.transformers_quantizer"
when_imported("transformers.quantizers.auto", lambda: import_module(QUANTIZER))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("slimrun")
    if name == "compress":
        return import_module("slimrun.ops.compress")
    if name not in HOMES:
        raise AttributeError(f"module 'slimrun' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
