"""Checks of keywords, with the messages that msModelSlim's users know."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from slimrun.ops.errors import nearest
from slimrun.ops.format.linear import FLOAT
from slimrun.ops.quant.base import Quantizer

log = logging.getLogger(__name__)

DEVICES = {"cpu": "cpu", "npu": "npu", "gpu": "cuda"}  # dev_type -> torch's name


def check_type(name: str, value: object, kind: type, called: str = "") -> None:
    """TypeError in the original's words; bool is no int here."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} must be {called or kind.__name__}, not {type(value).__name__}.")


def check_range(name: str, value: float, low: float, high: float | None = None) -> None:
    """ValueError when the value lies outside."""
    if value < low:
        raise ValueError(f"{name} = {value} is smaller than {low}.")
    if high is not None and value > high:
        raise ValueError(f"{name} = {value} is larger than {high}.")


def named(method: str, names: Sequence[str], values: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Positional and keyword arguments by name."""
    if len(values) > len(names):
        raise TypeError(f"{method}() takes {len(names)} arguments, got {len(values)}; allowed: {', '.join(names)}.")
    by_position = dict(zip(names, values))
    twice = by_position.keys() & keywords.keys()
    if twice:
        raise TypeError(f"{method}() got {sorted(twice)[0]} twice.")
    return {**by_position, **keywords}


def file_name(key: str, value: str | None, default: str) -> str:
    """The name of a file with the default's suffix, and no folder in it; None takes the default."""
    name = default if value is None else value
    check_type(key, name, str)
    suffix = Path(default).suffix
    if Path(name).name != name or not name.endswith(suffix) or name == suffix or "\0" in name:
        raise ValueError(f"{key} = {name!r} is invalid; allowed: the name of a file that ends in {suffix}.")
    return name


def check_layers(quantizer: Quantizer, names: Sequence[str], kinds: str, hint: str = "") -> None:
    """ValueError when the model has no linear of these kinds, not one that `disable_names` names, or none is left.

    `hint` says why a name may not be there.
    """
    if quantizer.quant_type == FLOAT:
        return
    if not names:
        raise ValueError(f"No {kinds} found in the model, please check the model.")
    for name in quantizer.ignore:
        if name not in names:
            near = f"; {hint}" if hint else nearest(name, list(names))
            raise ValueError(f"`disable_names` has invalid key `{name}`, please check your model configurations{near}.")
    left = len(names) - len(quantizer.ignored(names))
    if 0 < left <= quantizer.fallback_level:
        raise ValueError(
            f"disable_level = L{quantizer.fallback_level} keeps all {left} linears float and leaves nothing to "
            f"quantize; allowed: L0 to L{left - 1}."
        )
    if left == 0:
        raise ValueError(
            f"Nothing is left to quantize: disable_names and disable_last_linear keep every {kinds} of the model float "
            f"({', '.join([*names][:3])}{', ...' if len(names) > 3 else ''})."
        )


def check_samples(calib_data: Any) -> None:
    """TypeError unless it is a list of samples, each a list or a dict; None is one too."""
    check_type("calib_data", calib_data if calib_data is not None else [], list)
    for index, sample in enumerate(calib_data or []):
        if not isinstance(sample, list | dict):
            raise TypeError(f"calib_data[{index}] must be list or dict, not {type(sample).__name__}.")


def check_device(kind: str, model: nn.Module) -> None:
    """ModuleNotFoundError when the device's package is not here; a warning when the model is on another one."""
    if kind == "npu" and importlib.util.find_spec("torch_npu") is None:
        raise ModuleNotFoundError("dev_type = npu needs the package torch_npu; install it with CANN, or take 'cpu'.")
    parameter = next(iter(model.parameters()), None)
    place = "cpu" if parameter is None or parameter.is_meta else parameter.device.type
    if place != DEVICES[kind]:
        log.warning("dev_type=%s, but the model is on %s: it is quantized where it is", kind, place)


def check_calibrated(quantizer: Quantizer, calib_data: Sequence[Any] | None) -> None:
    """ValueError when the method needs samples and there are none."""
    if not calib_data and quantizer.input_observer:
        raise ValueError(f"{quantizer.quant_type} does not support Data-Free: calib_data is empty.")
