"""A model over several devices, main memory and disk: which module goes where, and the way there."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory, get_max_memory
from torch import nn

from slimrun.ops.format.linear import Int8Table
from slimrun.ops.framework.base import Device
from slimrun.ops.scratch import ScratchFolder


def place(module: Any, device: Device) -> Any:
    """A model in memory, moved to the device or spread as its device_map says."""
    if device.device_map is None:
        return module.to(device.type)
    with _tables_once(module):
        return dispatch_model(
            module,
            find_device_map(module, device, offload_buffers=True),
            offload_dir=private_folder(device),
            offload_buffers=True,  # the weights of quantized linears are buffers
            skip_keys=getattr(module, "_skip_keys_device_placement", None),
        )


def find_device_map(module: Any, device: Device, *, offload_buffers: bool = False) -> dict[str, int | str]:
    """Module name -> number of a card, "cpu" or "disk"; weights may be on the meta device.

    Decoder layers stay whole and tied weights together.
    """
    limits = _limits(device)
    whole = list(getattr(module, "_no_split_modules", None) or [])
    if device.device_map == "sequential":
        limits = get_max_memory(limits)
    else:
        limits = get_balanced_memory(
            module, limits, no_split_module_classes=whole, low_zero=device.device_map == "balanced_low_0"
        )
    device_map = infer_auto_device_map(
        module, max_memory=limits, no_split_module_classes=whole, offload_buffers=offload_buffers
    )
    if set(device_map.values()) == {"disk"}:  # accelerate writes to disk only what has a name
        return {name: "disk" for name, _ in [*module.named_children(), *module.named_parameters(recurse=False)]}
    if (
        len(set(device_map.values())) == 1
    ):  # one card has to be named in full: accelerate never moves a model to the number 0 of an NPU
        return {
            name: f"{device.type}:{where}" if isinstance(where, int) else where for name, where in device_map.items()
        }
    return dict(device_map)


def private_folder(device: Device) -> str:
    """A new folder for offloaded weights, readable by its owner only, removed when the process ends."""
    folder = ScratchFolder("slimrun-offload", device.offload_folder)
    atexit.register(folder.remove)  # which keeps it until then
    return str(folder.path)


def input_device(module: Any, device: Device) -> torch.device:
    """Where the model's inputs go: where its embeddings are looked up, also when these are offloaded."""
    embeddings: nn.Module = module.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        where = getattr(part, "execution_device", None)
        if where is not None:
            return torch.device(device.type, where) if isinstance(where, int) else torch.device(where)
    return next(chain(embeddings.parameters(), embeddings.buffers())).device  # quantized ones are buffers


@contextmanager
def _tables_once(module: nn.Module) -> Iterator[None]:
    """Meanwhile a quantized table that stands in two places stands in the first, so that one way leads to it."""
    placed = [
        (owner, name, child)
        for owner in module.modules()
        for name, child in owner.named_children()
        if isinstance(child, Int8Table)
    ]
    again = [place for index, place in enumerate(placed) if place[2] in [child for *_, child in placed[:index]]]
    for owner, name, _ in again:
        setattr(owner, name, nn.Identity())
    try:
        yield
    finally:
        for owner, name, child in again:
            setattr(owner, name, child)


def _limits(device: Device) -> dict[int | str, Any] | None:
    """What to use of each card and of main memory, cards first: what is free, less where max_memory says so.

    None lets accelerate look itself, with its reserve for activations.
    """
    if not device.max_memory and device.type != "cpu":
        return None
    limits = {key: free for key, free in get_max_memory().items() if key == "cpu" or device.type != "cpu"}
    for key, size in device.max_memory.items():
        if size is not None:
            limits[int(key) if key.isdecimal() else key] = int(size) if size.isdecimal() else size
    return dict(sorted(limits.items(), key=lambda item: (item[0] == "cpu", item[0])))
