"""Loading torch models from folders and hub ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from slimrun.ops.framework.base import Device
from slimrun.ops.memory import Room
from slimrun.ops.model.auto import AutoConfig, AutoModelForCausalLM
from slimrun.ops.model.base import Model
from slimrun.ops.model.experts import is_stack, unstack
from slimrun.ops.model.fit import check_loaded, quiet
from slimrun.ops.model.skeleton import skeleton

from .conversion import in_dtype
from .experts_apart import experts_apart
from .placement import find_device_map, place, private_folder


def load_pretrained(path: Path | str, model: Model, device: Device, room: Room) -> Any:
    """The float model of a folder or hub id, on the device or spread as its device_map says.

    ValueError unless transformers found every weight of it there, and no other.
    """
    dtype: Any = model.dtype if model.dtype == "auto" else getattr(torch, model.dtype)
    source = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    spread: dict[str, Any] = {}
    if device.device_map is not None:
        config = AutoConfig.from_pretrained(path, **source)
        if model.dtype != "auto":
            config.dtype = dtype  # what the skeleton is measured in
        empty = skeleton(config, trust_remote_code=model.trust_remote_code)
        empty.tie_weights()
        if not any(map(is_stack, empty.modules())):  # parts of stacks have no place of their own before they are loaded
            spread = {"device_map": find_device_map(empty, device), "offload_folder": private_folder(device)}
    config = AutoConfig.from_pretrained(path, **source)
    told = config.dtype if dtype == "auto" else dtype
    apart = {} if spread else experts_apart(config)
    try:
        with quiet(), in_dtype(Path(path), told, Room() if spread else room) as folder:
            module, report = AutoModelForCausalLM.from_pretrained(
                folder or path,
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **spread,
                **apart,
                **source,
            )
    except RuntimeError as error:
        if "conversion" in str(error):
            raise ValueError(f"{path}: experts lack weights, or have them in other shapes; get it again") from error
        raise
    check_loaded(module, report, str(path))
    if folder is not None:
        for name, weight in module.named_parameters():
            if weight.ndim > 1 and weight.dtype != told:
                raise ValueError(
                    f"model.dtype={model.dtype}: {name} stays {weight.dtype} in this model, and memory has no room to "
                    "convert it; take a larger device.max_memory.cpu, or model.dtype=auto"
                )
    if spread:
        return module
    fits = sum(weight.nbytes for weight in module.parameters()) <= room.left
    unstack(module, room=None if fits else room)
    return place(module, device)
