"""Whether torch can compute on a device."""

from __future__ import annotations

import importlib
import importlib.util
import os

import torch

from slimrun.ops.errors import Unavailable
from slimrun.ops.framework.base import Device


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
