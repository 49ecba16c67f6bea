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
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ops.framework.base import Device, Model, Outline, Unavailable

from .fingerprint import description_hash, foreign_code, store_object

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


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


def check_folder(path: Path) -> None:
    """Unavailable unless the folder holds config.json and whole weight files."""
    if not (path / "config.json").is_file():
        raise Unavailable(f"{path} has no config.json; give the folder that save_pretrained wrote")
    files = [file for pattern in WEIGHT_PATTERNS for file in sorted(path.glob(pattern))]
    if not files:
        raise Unavailable(f"{path} has no weights ({', '.join(WEIGHT_PATTERNS)})")
    for index in path.glob("*.index.json"):
        for shard in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
            if not (path / shard).is_file():
                raise Unavailable(f"{path} lacks {shard}, which {index.name} lists; get it again")
    for file in path.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise Unavailable(f"{file} is truncated or damaged ({first_line(error)}); get it again") from error


def outline_of(model: Model, folder: Path | None, cache: Path) -> Outline:
    """The outline of a model whose files lie in `folder` (None: it has none here, or they do not describe it)."""
    if model.source == "pretrained" and (folder is None or (model.trust_remote_code and foreign_code(folder))):
        return measure(model)  # what a hub id means may change
    file = cache / "outlines" / f"{description_key(model, folder, cache)}.json"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        linears = {name: (int(rows), int(columns)) for name, (rows, columns) in stored["linears"].items()}
        notes = tuple(map(str, stored["notes"]))
        return Outline(linears, int(stored["parameters"]), int(stored["float_bytes"]), notes)
    except (OSError, ValueError, TypeError, KeyError):
        found = measure(model)
    store_object(file, asdict(found))
    return found


def measure(model: Model) -> Outline:
    """The outline from the model's code, with parameters that take no memory."""
    from . import loading  # transformers and the model's code take seconds to import
    from .network import linear_names

    config = loading.read_config(model)
    module = loading.skeleton(config, trust_remote_code=model.trust_remote_code)
    module.tie_weights()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    named = None if model.dtype == "auto" else getattr(torch, model.dtype)
    dtype = named or getattr(config, "dtype", None) or torch.float32
    return Outline(linear_names(module), parameters, parameters * dtype.itemsize)


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
