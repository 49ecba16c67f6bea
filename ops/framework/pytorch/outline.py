"""What can be known of device and model without loading a weight: whether they are there, linears and size.

Outlines are kept in the cache, because importing a model's code takes seconds: `outlines/<key>.json` is keyed by what
describes the model and by the libraries' versions. Deleting any of it is safe.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimrun.ops.framework.base import Device, Model, Outline, Unavailable
from slimrun.ops.framework.weight_files import check_float

from .fingerprint import description_hash, foreign_code, store_object


def check_device(device: Device) -> None:
    """Export the device's environment; Unavailable unless torch can compute on it."""
    os.environ.update({name: value for name, value in device.environment.items() if value is not None})
    if device.module is not None:
        if importlib.util.find_spec(device.module) is None:
            raise Unavailable(f"device={device.name} needs the package {device.module}: {device.install}")
        try:
            importlib.import_module(device.module)
        except Exception as error:  # a broken vendor package raises anything, and its reason is what the user needs
            raise Unavailable(
                f"device={device.name}: {device.module} does not load ({error}): {device.install}"
            ) from error
    if device.type == "cpu":
        return
    backend = getattr(torch, device.type, None)
    if backend is None or not backend.is_available():
        raise Unavailable(f"device={device.name}: torch finds no such device here: {device.install}")
    cards = [int(key) for key in device.max_memory if key.isdecimal()]
    if cards and max(cards) >= backend.device_count():
        raise Unavailable(f"device.max_memory.{max(cards)}: torch sees {backend.device_count()} cards here, from 0 on")


def outline_of(model: Model, folder: Path | None, cache: Path, stored: Mapping[str, Tensor] | None = None) -> Outline:
    """The outline of a model whose files lie in `folder` (None: it has none here, or they do not describe it).

    `stored` is what its weight files hold, on the meta device; Unavailable when that is not the model's.
    """
    if model.source == "pretrained" and (folder is None or (model.trust_remote_code and foreign_code(folder))):
        return measure(model, stored, str(folder))  # what a hub id means may change
    held = [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in sorted((stored or {}).items())]
    key = hashlib.sha256(json.dumps([description_key(model, folder, cache), held]).encode()).hexdigest()
    file = cache / "outlines" / f"{key}.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        linears = {name: (int(rows), int(columns)) for name, (rows, columns) in found["linears"].items()}
        notes = tuple(map(str, found["notes"]))
        kept = {str(name): str(why) for name, why in found["kept"].items()}
        sizes = int(found["parameters"]), int(found["float_bytes"])
        return Outline(linears, *sizes, notes, int(found["experts"]), kept)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        measured = measure(model, stored, str(folder))
    store_object(file, asdict(measured))
    return measured


def measure(model: Model, stored: Mapping[str, Tensor] | None = None, source: str = "") -> Outline:
    """The outline from the model's code, with parameters that take no memory; Unavailable when it cannot run here.

    What was stored is loaded into it in the same way, so that the loader itself says whether it fits.
    """
    from . import loading
    from .checkpoint import check_weights
    from .experts import expert_parameters, float_linears
    from .network import linear_names
    from .output_head import check_head

    config = loading.read_config(model)
    check_float(config.to_dict(), f"model={model.name}")
    module = loading.empty_model(config, model)
    module.tie_weights()
    if stored is not None:
        check_weights(module, config, stored, source)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    named = None if model.dtype == "auto" else getattr(torch, model.dtype)
    dtype = named or getattr(config, "dtype", None) or torch.float32
    experts = sum(parameter.numel() for parameter in expert_parameters(module).values())
    check_head(module, model.name)
    return Outline(
        linear_names(module), parameters, parameters * dtype.itemsize, experts=experts, kept=float_linears(module)
    )


def first_line(error: BaseException) -> str:
    """Of its message."""
    return str(error).strip().split("\n")[0]


def description_key(model: Model, folder: Path | None, cache: Path) -> str:
    """sha256 of everything that is known of a model without its weights: config, code and tokenizer, or architecture.

    Libraries' versions are part of it. What a hub id means, or code in another repository, is not seen here.
    """
    described: list[Any] = [version("transformers"), version("torch"), model.dtype, model.trust_remote_code]
    if model.source == "pretrained" and folder is not None:
        described.append(description_hash(folder, cache, code=model.trust_remote_code))
    else:
        described.append(model.architecture)
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
