"""Loading torch models from folders and hub ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from slimrun.ops.memory import Room
from slimrun.ops.model.auto import AutoConfig, AutoModelForCausalLM
from slimrun.ops.model.base import Model
from slimrun.ops.model.experts import unstack
from slimrun.ops.model.fit import check_loaded, quiet

from .conversion import in_dtype
from .experts_apart import experts_apart


def load_pretrained(path: Path | str, model: Model, room: Room) -> Any:
    """The float model of a folder or hub id, in main memory: mapped from its files where they have its dtype.

    ValueError unless transformers found every weight of it there, and no other.
    """
    dtype: Any = model.dtype if model.dtype == "auto" else getattr(torch, model.dtype)
    source = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    config = AutoConfig.from_pretrained(path, **source)
    told = config.dtype if dtype == "auto" else dtype
    try:
        with quiet(), in_dtype(Path(path), told, room) as folder:
            module, report = AutoModelForCausalLM.from_pretrained(
                folder or path,
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **experts_apart(config),
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
    fits = sum(weight.nbytes for weight in module.parameters()) <= room.left
    unstack(module, room=None if fits else room)
    return module
