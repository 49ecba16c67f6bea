"""MindSpore's .ckpt files: numbers by name in a protocol buffer, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from slimrun.ops.files import WEIGHT_MODE, make_folder, replacing
from slimrun.ops.weights.base import read_tensors

SUFFIX = ".ckpt"


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .ckpt file by name; ValueError or FileNotFoundError names the file."""
    check_name(path)
    if not path.is_file():
        raise FileNotFoundError(f"The path {path} doesn't exist or not a file.")
    try:
        return dict(read_tensors(path))
    except ValueError as error:
        raise ValueError(f"{path} is no MindSpore checkpoint, or it is damaged: {error}") from error


def write(
    path: Path, tensors: Mapping[str, torch.Tensor], check: Callable[[Path], None] = lambda written: None
) -> None:
    """Write tensors by name as a .ckpt file (0400), atomically; `check` may refuse what was written by raising."""
    import mindspore as ms

    from slimrun.ops.weights.mindspore import from_torch

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
