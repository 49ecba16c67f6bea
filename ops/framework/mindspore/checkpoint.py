"""MindSpore's .ckpt files: numbers by name in a protocol buffer, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import torch
from mindspore import Parameter, nn

from slimrun.ops.files import WEIGHT_MODE, make_folder, replacing
from slimrun.ops.quant.base import nearest

from .protobuf import read_tensors
from .tensors import from_torch

SUFFIX = ".ckpt"


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .ckpt file by name; ValueError or FileNotFoundError names the file."""
    check_name(path)
    if not path.is_file():
        raise FileNotFoundError(f"The path {path} doesn't exist or not a file.")
    try:
        return read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{path} is no MindSpore checkpoint, or it is damaged: {error}") from error


def write(
    path: Path, tensors: Mapping[str, torch.Tensor], check: Callable[[Path], None] = lambda written: None
) -> None:
    """Write tensors by name as a .ckpt file (0400), atomically; `check` may refuse what was written by raising."""
    check_name(path)
    make_folder(path.parent)
    entries = [{"name": name, "data": from_torch(tensor)} for name, tensor in tensors.items()]
    with replacing(path, WEIGHT_MODE) as scratch:
        own = scratch.with_name(f"{scratch.name}{SUFFIX}")  # MindSpore puts its suffix behind any other name
        try:
            ms.save_checkpoint(entries, str(own))
            check(own)
            own.replace(scratch)
        finally:
            own.unlink(missing_ok=True)


def check_name(path: Path) -> None:
    """ValueError unless the name ends in .ckpt."""
    if path.suffix != SUFFIX:
        raise ValueError(f'The filename {path} doesn\'t endswith "{SUFFIX}".')


def load(network: nn.Cell, tensors: Mapping[str, torch.Tensor], source: Path | str, skip: Container[str] = ()) -> None:
    """Give every parameter of the network but `skip` its tensor, in the parameter's dtype; others are left over.

    ValueError names the parameter that the source lacks or has in another shape.
    """
    for parameter in network.get_parameters():
        if parameter.name in skip:
            continue
        if parameter.name not in tensors:
            hint = nearest(parameter.name, list(tensors))
            raise ValueError(f"{source} lacks {parameter.name}, which the network has{hint}")
        tensor = tensors[parameter.name]
        if tuple(tensor.shape) != tuple(parameter.shape):
            raise ValueError(
                f"{source}: {parameter.name} has the shape {tuple(tensor.shape)}, the network's has {parameter.shape}"
            )
        assign(parameter, tensor)


def assign(parameter: Parameter, tensor: torch.Tensor) -> None:
    """Set the parameter to the tensor, cast to its dtype on the host."""
    kinds: dict[Any, torch.dtype] = {ms.float32: torch.float32, ms.float16: torch.float16, ms.bfloat16: torch.bfloat16}
    parameter.set_data(from_torch(tensor.to(kinds[parameter.dtype]) if parameter.dtype in kinds else tensor))
