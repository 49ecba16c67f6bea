"""Bundles of tiny random models, and the models they were made of."""

from __future__ import annotations

from pathlib import Path

from slimrun.ops import bundle
from slimrun.ops.compress.base import Codec
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native
from slimrun.ops.framework.pytorch import PyTorch, TorchModel
from slimrun.ops.quant.base import Quantizer

from ..conftest import TEXTS, tiny


def written(folder: Path, quantizer: Quantizer, dtype: str = "float32", **changes: object) -> TorchModel:
    """The quantized model whose bundle lies in the folder."""
    return write(folder, tiny(dtype, **changes), quantizer)


def write(folder: Path, model: TorchModel, quantizer: Quantizer, codec: Codec | None = None) -> TorchModel:
    codec, shapes = codec or Native(), model.shapes
    layers = PyTorch().calibrator(model, quantizer, TEXTS, 64).run()
    tensors = model.tensors()
    weights = {name: tensors[f"{name}.weight"].numpy() for name in model.quantized()}
    bundle.write(
        folder,
        tensors,
        Compressor(codec).run(weights),
        quantizer.quant_type,
        codec,
        model.save_description,
        formats={layer.name: layer.format for layer in layers if layer.format},
        float_model=shapes,
    )
    return model
