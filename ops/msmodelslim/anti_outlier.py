"""msModelSlim's AntiOutlier: takes outliers out of activations before `Calibrator`, on slimrun's own smoothing.

Scripts written for it run with `from slimrun.msmodelslim.anti_outlier import AntiOutlier, AntiOutlierConfig`. Of its
methods those that smooth norms are built: m1 (SmoothQuant), m2 (Outlier Suppression+) and, as far as it goes through
norms, m4. The others are refused by name.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slimrun.msmodelslim import telling
from slimrun.msmodelslim.checks import DEVICES, check_device, check_samples, check_type
from slimrun.ops.calibration.selection import check_float
from slimrun.ops.calibration.smoothing import smooth
from slimrun.ops.calibration.states import Walk, failing
from slimrun.ops.framework.pytorch.network import TorchNetwork, uncompiled
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8s import W8A8S

__all__ = ["AntiOutlier", "AntiOutlierConfig"]

log = logging.getLogger(__name__)

SHIFTS = {"m1": False, "m2": True, "m4": False}  # method -> whether channels are moved to the middle too
NOT_BUILT = {"m3": "AWQ", "m5": "CBQ", "m6": "flex smooth"}
WEIGHTS: dict[int, Quantizer] = {8: W8A8(), 4: W8A8S()}  # w_bit -> the grid that errors are taken on


@dataclass
class AntiOutlierConfig:
    """Keywords, order and defaults of msModelSlim's AntiOutlierConfig; TypeError or ValueError on a wrong one."""

    w_bit: int = 8
    a_bit: int = 8
    anti_method: str = "m2"
    dev_type: str = "cpu"
    dev_id: int | None = None
    w_sym: bool = True
    disable_anti_names: list[str] | None = None
    flex_config: dict[str, float] | None = None

    def __post_init__(self) -> None:
        """Validate."""
        check_type("w_bit", self.w_bit, int)
        check_type("a_bit", self.a_bit, int)
        check_type("anti_method", self.anti_method, str)
        check_type("w_sym", self.w_sym, bool)
        if self.anti_method in NOT_BUILT:
            method = NOT_BUILT[self.anti_method]
            raise ValueError(f"anti_method = {self.anti_method} ({method}) is not built; allowed: {', '.join(SHIFTS)}.")
        if self.anti_method not in SHIFTS:
            raise ValueError(f"anti_method = {self.anti_method} is invalid; allowed: {', '.join(SHIFTS)}.")
        if self.dev_type not in DEVICES:
            raise ValueError(f"dev_type = {self.dev_type}: Device type must be in choices [{', '.join(DEVICES)}].")
        if self.dev_id is not None:
            check_type("dev_id", self.dev_id, int)
        for name, allowed in {"w_bit": tuple(WEIGHTS), "a_bit": (8,), "w_sym": (True,)}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} = {getattr(self, name)} is invalid with anti_method {self.anti_method}; "
                    f"allowed: {', '.join(map(str, allowed))}."
                )
        for name in ("disable_anti_names", "flex_config"):
            if getattr(self, name):
                raise ValueError(f"{name} is not built: it is for anti_method m6; allowed: None.")


class AntiOutlier:
    """msModelSlim's AntiOutlier: `process` smooths every norm of `model`, in place, that linears alone read.

    The float function stays. Norms are the modules whose class has "Norm" in its name; norm_class_name must be that of
    one. calib_data is a list of samples as `Calibrator` takes them.
    """

    def __init__(
        self,
        model: nn.Module,
        calib_data: list[Any] | None = None,
        cfg: AntiOutlierConfig | None = None,
        norm_class_name: str | None = None,
    ) -> None:
        self.cfg = AntiOutlierConfig() if cfg is None else cfg
        check_type("model", model, nn.Module, "Module")
        check_type("cfg", self.cfg, AntiOutlierConfig)
        check_samples(calib_data)
        if not calib_data:
            raise ValueError("AntiOutlier does not support Data-Free: calib_data is empty.")
        if norm_class_name is not None:
            _check_norm(norm_class_name, model)
        check_device(self.cfg.dev_type, model)
        self.model: Any = uncompiled(model)
        self.calib_data = calib_data
        check_float(TorchNetwork(self.model), WEIGHTS[self.cfg.w_bit])

    @torch.no_grad()
    def process(self) -> None:
        """Smooth the norms; ValueError says which sample does not fit."""
        network, asked = TorchNetwork(self.model), f"anti_method={self.cfg.anti_method}"
        training = self.model.training
        self.model.eval()
        try:
            with failing(0, self.calib_data[0]):
                parts = network.tell_parts(self.calib_data[0])
            walk = Walk(network, self.calib_data, parts)
            changed, notes = smooth(
                walk, WEIGHTS[self.cfg.w_bit], set(network.linears()), shifts=SHIFTS[self.cfg.anti_method], asked=asked
            )
        finally:
            self.model.train(training)
        if self.cfg.anti_method == "m4":
            notes = ["anti_method=m4: norms alone are smoothed, not what linears give each other", *notes]
        for note in notes:
            log.warning(note)
        telling.smoothed(changed)
        self.model.anti_method = self.cfg.anti_method  # `Calibrator` saves the norms then, as the original does


def _check_norm(name: str, model: nn.Module) -> None:
    check_type("norm_class_name", name, str)
    norms = sorted({type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__})
    if name.lower() not in map(str.lower, norms):
        raise ValueError(f"norm_class_name = {name} is no norm of the model; allowed: {', '.join(norms) or 'none'}.")
