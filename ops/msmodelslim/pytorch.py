"""The names and keywords of msModelSlim's large-model quantization, on slimrun's own implementation.

Scripts written for it run with `from slimrun.msmodelslim.pytorch import Calibrator, QuantConfig`. A `QuantConfig` says
which method of `slimrun.ops.quant` with which knobs; the `Calibrator` runs it. Where the original silently changes what
was asked for, a warning names the key. What this program does not build is refused by name.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimrun.msmodelslim import saving, telling
from slimrun.msmodelslim.checks import (
    check_calibrated,
    check_device,
    check_layers,
    check_range,
    check_samples,
    check_type,
    file_name,
)
from slimrun.msmodelslim.quant_config import QuantConfig
from slimrun.ops import calibration
from slimrun.ops.files import staging
from slimrun.ops.format.linear import FLOAT
from slimrun.ops.framework.pytorch import network as pytorch
from slimrun.ops.framework.pytorch.storing import stored_tensors
from slimrun.ops.model import auto  # noqa: F401 - scripts load ChatGLM2 with transformers' Auto classes
from slimrun.ops.model.linears import linear_names

__all__ = ["Calibrator", "QuantConfig"]

log = logging.getLogger(__name__)

SAVE_TYPES = ("numpy", "safe_tensor", "ascendV1")
GIBIBYTE = 1 << 30


class Calibrator:
    """msModelSlim's Calibrator: quantizes `model` in place; one that torch.compile has wrapped runs compiled anew.

    The files have one format, so that a linear that no sample reaches, or whose weight the model reads itself, stays
    float; a warning names it.

    calib_data is a list of samples, each a list (`model(*sample)`) or a dict (`model(**sample)`). disable_level "Lk"
    keeps k linears float: those with the heaviest input tails, or with lowbit the largest inputs of the first sample.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: QuantConfig,
        calib_data: list[Any] | None = None,
        disable_level: str = "L0",
        all_tensors: None = None,
        mix_cfg: None = None,
    ) -> None:
        check_type("model", model, nn.Module, "Module")
        check_type("cfg", cfg, QuantConfig)
        check_samples(calib_data)
        for name, value in (("all_tensors", all_tensors), ("mix_cfg", mix_cfg)):
            if value is not None:
                raise ValueError(f"{name} is not built; allowed: None.")
        check_device(cfg.dev_type, model)
        self.model = pytorch.uncompiled(model)
        self.cfg = cfg
        self.quantizer = cfg.quantizer(disable_level)
        network = pytorch.TorchNetwork(self.model)
        self._calibrator = calibration.calibrator(network, self.quantizer, calib_data or [], one_format=True)
        headless = _headless(self.model)
        check_layers(self.quantizer, list(linear_names(self.model)), "nn.Linear", headless)
        if headless:
            log.warning(headless)
        check_calibrated(self.quantizer, calib_data)
        self._tensors: dict[str, Tensor] = {}

    def run(self, int_infer: bool = False) -> None:
        """Quantize the weights, calibrate the inputs. The model always computes with integers, int_infer or not."""
        check_type("int_infer", int_infer, bool)
        training = self.model.training
        self.model.eval()
        try:
            layers = telling.run(self._calibrator)
        finally:
            self.model.train(training)
        for note in self._calibrator.notes:
            log.warning(note)
        self._tensors = stored_tensors(self.model)
        telling.quantized(layers, self._tensors)

    def save(
        self,
        output_path: str,
        safetensors_name: str | None = None,
        json_name: str | None = None,
        save_type: list[str] | str | None = None,
        part_file_size: int | None = None,
    ) -> None:
        """Write the quantized model into the folder `output_path`, atomically.

        save_type: "numpy" (the default), "safe_tensor", "ascendV1", or a list of them. part_file_size cuts the
        safetensors file into parts of so many GiB. ValueError before `run`, or for a value that is not allowed.
        """
        check_type("output_path", output_path, str)
        kinds = [save_type] if isinstance(save_type, str) else ["numpy"] if save_type is None else save_type
        if not kinds:
            raise ValueError(f"save_type is empty; allowed: {', '.join(SAVE_TYPES)}.")
        for kind in kinds:
            if kind not in SAVE_TYPES:
                raise ValueError(f"save_type = {kind} is invalid; allowed: {', '.join(SAVE_TYPES)}.")
        if part_file_size is not None:
            check_type("part_file_size", part_file_size, int)
            check_range("part_file_size", part_file_size, 1)
        quant_type = self.quantizer.quant_type.lower()
        weights = file_name("safetensors_name", safetensors_name, f"quant_model_weight_{quant_type}.safetensors")
        description = file_name("json_name", json_name, f"quant_model_description_{quant_type}.json")
        if not self._tensors:
            raise ValueError("save() needs a quantized model: call run() first.")
        folder = Path(output_path)
        shard_bytes = None if part_file_size is None else part_file_size * GIBIBYTE
        with staging(folder) as scratch:
            if "numpy" in kinds:
                saving.write_numpy(scratch, self._linears(), self._norms())
            if "safe_tensor" in kinds or "ascendV1" in kinds:
                saving.write_safetensors(scratch, weights, self._tensors | self._norms(), shard_bytes)
            if "safe_tensor" in kinds:
                saving.write_json(scratch / description, self._description())
            if "ascendV1" in kinds:
                versioned = {"version": "1.0.0", **self._description()}
                saving.write_json(scratch / "quant_model_description.json", versioned)
            written = {path.name for path in scratch.iterdir()}
        if any(name.startswith(weights.removesuffix(".safetensors")) for name in written):
            saving.remove_older(folder, weights, written)

    def _linears(self) -> dict[str, dict[str, Tensor]]:
        """name -> suffix -> tensor of every quantized linear."""
        quantized = [layer.name for layer in self._calibrator.layers.values() if layer.quantized]
        return {
            name: {
                key.removeprefix(f"{name}."): tensor
                for key, tensor in self._tensors.items()
                if key.rpartition(".")[0] == name
            }
            for name in quantized
        }

    def _norms(self) -> dict[str, Tensor]:
        """With smoothing: the norms' weight and bias, twice as the original has them, under `.module.` too."""
        if not self._calibrator.smoothed and getattr(self.model, "anti_method", None) is None:
            return {}
        norms: dict[str, Tensor] = {}
        for name, weight in self._tensors.items():
            owner, _, suffix = name.rpartition(".")
            if suffix == "weight" and weight.ndim == 1 and "Norm" in type(self.model.get_submodule(owner)).__name__:
                bias = self._tensors.get(f"{owner}.bias", torch.zeros_like(weight))
                norms |= {f"{owner}.weight": weight, f"{owner}.bias": bias}
                norms |= {f"{owner}.module.weight": weight.clone(), f"{owner}.module.bias": bias.clone()}
        return norms

    def _description(self) -> dict[str, object]:
        """Tensor name -> its type."""
        quant_type = self.quantizer.quant_type
        linears = self._linears()
        types: dict[str, object] = {"model_quant_type": quant_type}
        for key in sorted(self._tensors | self._norms()):
            owner, _, suffix = key.rpartition(".")
            of_linear = owner in linears and suffix != "bias"
            types[key] = quant_type if of_linear or owner.endswith(".module") else FLOAT
        return types


def _headless(model: nn.Module) -> str:
    """What to load instead of a model of transformers without its output layer, as AutoModel gives it; else ""."""
    named = [str(name) for name in getattr(getattr(model, "config", None), "architectures", None) or []]
    if getattr(model, "base_model", None) is not model or not named or type(model).__name__ in named:
        return ""
    return (
        f"model is {type(model).__name__}, which lacks the output layer and the prefix of the names in the files of "
        f"{named[0]}: load it with AutoModelForCausalLM"
    )
