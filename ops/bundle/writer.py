"""Writing a bundle: all of it or nothing, in the place of an older one without the folder ever being away.

It is written at once, not linear by linear: deq_scale and quant_bias are known only when all inputs are calibrated, and
a safetensors file begins with the sizes of everything in it. What was coded until then lies in the run's `Room`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from slimrun.ops.compress.base import Codec, Parts
from slimrun.ops.compress.native import Native
from slimrun.ops.files import DESCRIPTION_MODE, FOLDER_MODE, WEIGHT_MODE, sync
from slimrun.ops.format.linear import FLOAT, FLOAT_CODED, FORMATS, INTEGERS_CODED, Int8Table, WeightOnlyLinear
from slimrun.ops.memory import Room
from slimrun.ops.scratch import ScratchFolder
from slimrun.ops.weights import ckpt, safetensors

from .description import QUANT_METHOD, SAFETENSORS, file_name, owner, read_object
from .manifest import Shapes, write_manifest
from .references import CONFIG

HERE, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2
GRACE_SECONDS, PAUSE_SECONDS = 5.0, 0.01  # how long a writer waits for readers, and between two looks
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # an older kernel, or a file system without it


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    coded: Mapping[str, Parts],
    quant_type: str,
    codec: Codec,
    save_description: Callable[[Path], None],
    suffix: str = SAFETENSORS,
    formats: Mapping[str, str] = MappingProxyType({}),
    room: Room | None = None,
    float_model: Shapes | None = None,
) -> Path:
    """Write the bundle atomically and return the weight file's path.

    `tensors` is everything the model stores, `coded` the coded parts of its int8 weights (by linear),
    `save_description` writes config and tokenizer into a folder, `suffix` is the kind of the weight file, `formats` are
    those of linears that have another one than `format_of` tells, `room` is where the tensors lie, `float_model` are
    names and shapes that the model's tensors had before it was quantized. An existing bundle is replaced only once the
    new one is complete on disk; on any failure nothing of the new one is left.
    """
    coded_sign = "C" if codec.container and coded else ""
    own = {name: formats.get(name, format_of(name, tensors, quant_type)) + coded_sign for name in coded}
    quant_type += coded_sign
    stored = {key: value for key, value in tensors.items() if key.removesuffix(".weight") not in coded}
    room = room or Room()
    numbers = _coded_numbers(stored, codec, room) if coded and isinstance(codec, Native) else {}
    kinds = {key: FLOAT_CODED if stored[key].is_floating_point() else INTEGERS_CODED for key in numbers}
    stored |= numbers
    stored |= {
        f"{name}.{suffix}": torch.from_numpy(part) for name, parts in coded.items() for suffix, part in parts.items()
    }
    types = {key: FLOAT if key.endswith(".bias") else own.get(owner(key), FLOAT) for key in stored} | kinds
    description: dict[str, Any] = {"model_quant_type": quant_type, **dict(sorted(types.items()))}
    if codec.container and coded:
        description["container"] = {"name": codec.container, "version": codec.version}
    if folder.is_symlink():
        folder = folder.resolve()  # the link stays
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ScratchFolder(f".{folder.name}", folder.parent) as scratch:
        save_description(scratch)
        _name_quantizer(scratch / CONFIG)
        weights = scratch / file_name("weight", quant_type, suffix)
        _write_tensors(weights, stored, room)
        text = json.dumps(description, indent=2)
        (scratch / file_name("description", quant_type, ".json")).write_text(text + "\n", encoding="utf-8")
        write_manifest(scratch, weights, stored, float_model)
        settle(scratch, folder, [weights])
    return folder / weights.name


def settle(scratch: Path, folder: Path, weights: Collection[Path]) -> None:
    """Give the files of a scratch folder their permissions, and the folder the place of `folder`, once all is on disk.

    What is in that place stays there until then, and when it fails.
    """
    for path in scratch.rglob("*"):
        path.chmod(FOLDER_MODE if path.is_dir() else WEIGHT_MODE if path in weights else DESCRIPTION_MODE)
        sync(path)
    scratch.chmod(FOLDER_MODE)
    _replace(scratch, folder)


def format_of(name: str, tensors: Mapping[str, Tensor], quant_type: str) -> str:
    """The format of a quantized linear: the model's, or weights alone where it keeps a step but no input grid.

    Tables have a step and nothing else.
    """
    alone = f"{name}.{WeightOnlyLinear.scale}" in tensors and f"{name}.input_scale" not in tensors
    if alone and f"{name}.weight_offset" not in tensors:
        return Int8Table.quant_type
    lacks_grid = alone and quant_type in FORMATS and FORMATS[quant_type].has_grid
    return WeightOnlyLinear.quant_type if lacks_grid else quant_type


def size(folder: Path) -> int:
    """Bytes of all files of the bundle."""
    return sum(file.stat().st_size for file in folder.rglob("*"))


def _coded_numbers(tensors: Mapping[str, Tensor], codec: Native, room: Room) -> dict[str, Tensor]:
    """The bytes of those that coding makes smaller."""
    coded = {}
    for key, tensor in tensors.items():
        packed = codec.encode_numbers(tensor)
        if packed is not None:
            coded[key] = room.empty(packed.shape, torch.uint8)
            coded[key].numpy()[...] = packed
            room.release([coded[key]])
        room.release([tensor])
    return coded


def _write_tensors(weights: Path, tensors: Mapping[str, Tensor], room: Room) -> None:
    if weights.suffix == SAFETENSORS:
        safetensors.write(weights, tensors, tensors.__getitem__, room.release)
    else:
        ckpt.write(weights, tensors)


def _name_quantizer(config: Path) -> None:
    """Say in config.json, where there is one, that the weights are not what a loader would expect."""
    if config.is_file():
        content = read_object(config) | {"quantization_config": {"quant_method": QUANT_METHOD}}
        config.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(scratch: Path, folder: Path) -> None:
    """Put the finished scratch folder in the place of `folder`; on failure the old one is back in its place."""
    sync(scratch)
    if not folder.exists():
        os.rename(scratch, folder)
    else:
        with _readers_done(folder):
            exchanged = _exchange(scratch, folder)
            if not exchanged:
                _rename_both(scratch, folder)
        if exchanged:
            shutil.rmtree(scratch)  # it is the old one now
    sync(folder.parent)


@contextmanager
def _readers_done(folder: Path) -> Iterator[None]:
    """Let those who read the folder finish, for a while: each of them would have to begin again."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(int(GRACE_SECONDS / PAUSE_SECONDS)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(PAUSE_SECONDS)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change places in one step; False where the system or its file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(HERE, os.fsencode(first), HERE, os.fsencode(second), EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(second))


def _rename_both(scratch: Path, folder: Path) -> None:
    """The same in two steps, between which the folder is away."""
    previous = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-previous-"))
    try:
        os.rename(folder, previous)
    except OSError:
        previous.rmdir()
        raise
    try:
        os.rename(scratch, folder)
    except OSError:
        os.rename(previous, folder)
        raise
    shutil.rmtree(previous)
