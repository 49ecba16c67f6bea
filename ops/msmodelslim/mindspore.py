"""The names and keywords of msModelSlim's quantization of MindSpore models, on slimrun's own implementation.

Scripts written for it run with `from slimrun.msmodelslim.mindspore import Calibrator, QuantConfig`. The original has
two keywords and the Linear of one library; here every keyword of the PyTorch path is one, and nn.Dense, mint.nn.Linear
and mindformers' Linear are quantized, on the CPU and on Ascend. `checkpoint.py` goes on from the saved file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimrun.msmodelslim import quant_config, telling
from slimrun.msmodelslim.checks import check_calibrated, check_layers, check_type
from slimrun.ops import calibration
from slimrun.ops.bundle.description import owner
from slimrun.ops.framework import mindspore as framework

framework.require()  # before the modules below import it: one line instead of a crash

import mindspore as ms
from mindspore import nn

from slimrun.ops.framework.mindspore.cells import check_mode, linear_names
from slimrun.ops.framework.mindspore.language_model import stored_tensors
from slimrun.ops.framework.mindspore.loading import fill_float
from slimrun.ops.framework.mindspore.network import MindSporeNetwork
from slimrun.ops.weights import ckpt
from slimrun.ops.weights.misfit import check_unquantized

__all__ = ["Calibrator", "QuantConfig"]

log = logging.getLogger(__name__)

SCALES = torch.float16  # of the input, in the file
WEIGHT_DTYPES = {"int8": torch.int8, "float32": torch.float32}
PYTORCH_ONLY = {"dev_type": "mindspore.set_device", "dev_id": "mindspore.set_device"}  # keyword -> what to call


class QuantConfig(quant_config.QuantConfig):
    """Sparse weights by row (`quant=w8a8s`) unless keywords name another method.

    They are those of `slimrun.msmodelslim.quant_config.QuantConfig`, whose defaults are other ones: here w_bit=4,
    co_sparse=True and mm_tensor=False are. TypeError or ValueError on a wrong one.
    """

    def __init__(self, disable_names: list[str] | None = None, fraction: float = 0.01, **keywords: Any) -> None:
        for name, instead in PYTORCH_ONLY.items():
            if name in keywords:
                raise ValueError(f"{name} is for PyTorch; call {instead} before.")
        other = {"is_lowbit", "a_bit", "is_dynamic"} & keywords.keys() or keywords.get("w_bit", 4) != 4
        defaults = {"w_bit": 4, "co_sparse": not other, "mm_tensor": False}
        super().__init__(**{**defaults, "disable_names": disable_names, "fraction": fraction, **keywords})


class Calibrator:
    """msModelSlim's Calibrator: gives `model` the float weights of the file `model_ckpt` and quantizes it in place.

    calib_data is a list of samples, each a list of arrays or Tensors (`model.generate(*sample, max_new_tokens=1)`,
    `model(*sample)` where there is no generate) or a dict (by keyword). disable_level is as in PyTorch.
    """

    def __init__(
        self,
        cfg: QuantConfig,
        model: nn.Cell,
        model_ckpt: str | os.PathLike[str],
        calib_data: list[Any] | None = None,
        disable_level: str = "L0",
    ) -> None:
        check_type("cfg", cfg, QuantConfig)
        check_type("model", model, nn.Cell, "Cell")
        check_type("calib_data", calib_data if calib_data is not None else [], list)
        self.cfg = cfg
        self.model = model
        self.quantizer = cfg.quantizer(disable_level)
        samples = [_tensors(index, sample) for index, sample in enumerate(calib_data or [])]
        network = MindSporeNetwork(model, _forward(model))
        self._calibrator = calibration.calibrator(network, self.quantizer, samples, SCALES, one_format=True)
        check_layers(self.quantizer, list(linear_names(model)), "nn.Dense, mint.nn.Linear or mindformers Linear")
        check_calibrated(self.quantizer, samples)
        check_mode()
        self._source = ckpt.read(Path(model_ckpt))
        check_unquantized(self._source, model_ckpt)
        fill_float(model, self._source, Path(model_ckpt))
        self._tensors: dict[str, Tensor] = {}

    def run(self) -> None:
        """Quantize the weights, calibrate the inputs."""
        training = self.model.training
        self.model.set_train(False)
        try:
            layers = telling.run(self._calibrator)
        finally:
            self.model.set_train(training)
        for note in self._calibrator.notes:
            log.warning(note)
        quantized = {layer.name for layer in self._calibrator.layers.values() if layer.quantized}
        stored = stored_tensors(self.model)
        if not self._calibrator.smoothed:  # then every other entry is what the file had
            stored = {key: tensor for key, tensor in stored.items() if owner(key) in quantized}
        folded = {f"{owner(key)}.bias" for key in stored if key.endswith(".quant_bias")}
        kept = {key: tensor for key, tensor in self._source.items() if owner(key) not in quantized}
        self._tensors = kept | {key: _of_file(key, tensor) for key, tensor in stored.items() if key not in folded}
        telling.quantized(layers, self._tensors)

    def save(self, path: str | os.PathLike[str], weight_dtype: str = "int8") -> None:
        """Write the checkpoint (0400), atomically: quantized linears, and every other key of `model_ckpt` unchanged.

        A linear has .weight (int8; weight_dtype="float32": the same integers as float32, as the original writes them),
        .input_scale (float16), .input_offset (int8), .quant_bias (int32) and .deq_scale (a float32's bits in int64).
        ValueError before `run`, or for a name that does not end in .ckpt.
        """
        if weight_dtype not in WEIGHT_DTYPES:
            raise ValueError(f"weight_dtype = {weight_dtype} is invalid; allowed: {', '.join(WEIGHT_DTYPES)}.")
        if not self._tensors:
            raise ValueError("save() needs a quantized model: call run() first.")
        integers = WEIGHT_DTYPES[weight_dtype]
        ckpt.write(
            Path(path),
            {
                key: tensor.to(integers) if tensor.dtype == torch.int8 and key.endswith(".weight") else tensor
                for key, tensor in self._tensors.items()
            },
        )

    def fake_quantize_model(self) -> nn.Cell:
        """The quantized model. It computes with the integers that are saved, not with floats that imitate them."""
        if not self._tensors:
            raise ValueError("fake_quantize_model() needs a quantized model: call run() first.")
        return self.model


def _forward(model: Any) -> Callable[..., Any] | None:
    """What runs a sample: one new token where the network generates, else (None) the network itself."""
    generate = getattr(model, "generate", None)
    return None if generate is None else lambda *args, **named: generate(*args, max_new_tokens=1, **named)


def _tensors(index: int, sample: Any) -> Any:
    """A sample with its arrays as Tensors; TypeError or ValueError names what cannot be one."""
    if isinstance(sample, dict):
        return {key: _tensor(f"calib_data[{index}][{key!r}]", value) for key, value in sample.items()}
    if isinstance(sample, list):
        return [_tensor(f"calib_data[{index}][{place}]", value) for place, value in enumerate(sample)]
    raise TypeError(f"calib_data[{index}] must be list or dict, not {type(sample).__name__}.")


def _tensor(name: str, value: Any) -> Any:
    """Arrays as Tensors, tokens as int32; other values as they are."""
    if not isinstance(value, np.ndarray | ms.Tensor):
        return value
    tensor = ms.Tensor(value)
    if not tensor.is_floating_point() and tensor.dtype != ms.bool_:
        if tensor.ndim != 2:
            raise ValueError(f"{name} has the shape {tensor.shape}, expected tokens [batch, length].")
        tensor = tensor.astype(ms.int32)
    return tensor


def _of_file(key: str, tensor: Tensor) -> Tensor:
    """The offset of the input is a whole number in this file."""
    return tensor.to(torch.int8) if key.endswith(".input_offset") else tensor
