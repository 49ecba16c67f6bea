"""Reading a bundle: all files of one and the same, checked against the manifest, weights decoded."""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from slimrun.ops import compress
from slimrun.ops.compress.base import Arena, Codec, Int8Array, Limited
from slimrun.ops.format.linear import CODED_NUMBERS, FLOAT
from slimrun.ops.memory import Room, release
from slimrun.ops.weights import ckpt

from .description import CKPT, damage, named, read_description, weight_file
from .manifest import check_tensors, read_manifest

Read = TypeVar("Read")

PATIENCE_SECONDS = 60.0  # with a folder that is replaced again and again
PAUSES, PAUSE_SECONDS = 10, 0.01  # while a folder is away: between the two steps of a writer that cannot exchange them
Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory: decoded tensors by name, and which linears are quantized."""

    tensors: dict[str, Tensor]
    quantized: list[str]
    types: dict[str, str]  # of each quantized linear: its format, whether coded or not


@dataclass(frozen=True)
class Stored:
    """What the files of a bundle hold, weights still coded."""

    tensors: dict[str, Tensor]  # without the weights of quantized linears; coded ones on the meta device
    numbers: dict[str, npt.NDArray[np.uint8]]  # the bytes of those
    coded: dict[str, dict[str, npt.NDArray[Any]]]  # linear -> stored parts of its weight
    codec: Codec
    types: dict[str, str]
    weights: Path


def read(folder: Path, shapes: Shapes | None = None) -> Bundle:
    """Read a bundle and decode its weights; ValueError names the file or tensor that is wrong.

    `shapes` are those of the linears that the bundle is for; without them a coded weight may claim what its bytes
    plausibly hold.
    """
    return decode(undisturbed(folder, open_stored), shapes)


def open_stored(folder: Path) -> Stored:
    """The tensors of a bundle as they are stored; ValueError names the file that is wrong."""
    description = read_description(folder)
    codec = description.codec()
    manifest = read_manifest(folder)
    weights = weight_file(folder, description.quant_type)
    tensors = _read_tensors(weights)
    if manifest is not None:
        check_tensors(manifest, weights, tensors)
    types = description.types
    for key in tensors:
        if key not in types:
            raise damage(weights, f"holds {key}, which its description does not name")
    quantized = [
        key.removesuffix(".weight")
        for key, tensor in tensors.items()
        if key.endswith(".weight") and types[key] != FLOAT and tensor.dtype == torch.int8
    ]
    coded = {
        name: {part: tensors.pop(key).numpy() for part in codec.parts if (key := f"{name}.{part}") in tensors}
        for name in quantized
    }
    numbers = {}
    for key in [key for key in tensors if types[key] in CODED_NUMBERS]:
        numbers[key] = tensors[key].numpy()
        with named(weights):
            dtype, shape = compress.float_header(numbers[key])
            tensors[key] = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
    formats = {name: types[f"{name}.weight"] for name in quantized}
    if codec.container:
        formats = {name: kind.removesuffix("C") for name, kind in formats.items()}
    return Stored(tensors, numbers, coded, codec, formats, weights)


def decode(stored: Stored, shapes: Shapes | None = None, room: Room | None = None) -> Bundle:
    """Decode the weights into the room; ValueError names the one that is damaged, or has a shape not that of `shapes`.

    Nothing is allocated for a shape that is wrong.
    """
    decoder = Decoder(stored, shapes, room or Room())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        weights = dict(zip(stored.coded, pool.map(decoder.weight, stored.coded), strict=True))
        numbers = dict(zip(stored.numbers, pool.map(decoder.number, stored.numbers), strict=True))
    tensors = stored.tensors | numbers | {f"{name}.weight": weight for name, weight in weights.items()}
    return Bundle(tensors, list(stored.coded), stored.types)


class Decoder:
    """Decodes the tensors of a bundle one by one, on any number of threads."""

    def __init__(self, stored: Stored, shapes: Shapes | None, room: Room) -> None:
        self.stored = stored
        self.shapes = shapes
        self.room = room
        self._arena = Arena(lambda shape: room.empty(shape, torch.int8).numpy())
        coded = [part for parts in stored.coded.values() for part in parts.values()]
        self._limited = Limited(sum(part.nbytes for part in (*coded, *stored.numbers.values())))

    def tensor(self, key: str) -> Tensor:
        """Any of the tensors that the bundle stands for."""
        name = key.removesuffix(".weight")
        if name != key and name in self.stored.coded:
            return self.weight(name)
        return self.number(key) if key in self.stored.numbers else self.stored.tensors[key]

    def weight(self, name: str) -> Tensor:
        """The int8 weight of a quantized linear; ValueError when it is damaged, or has another shape."""
        parts = self.stored.coded[name]
        try:
            if self.shapes is not None and name not in self.shapes:
                raise ValueError("is no linear of the model")
            decoded = self.stored.codec.decode(parts, partial(self._allocate, name))
        except (ValueError, KeyError) as error:
            raise damage(self.stored.weights, f"{name}: {error}") from error
        release(parts.values())
        self.room.release([decoded])
        return torch.from_numpy(decoded)

    def number(self, key: str) -> Tensor:
        """Coded numbers wider than a byte; ValueError when they are damaged."""
        packed = self.stored.numbers[key]
        try:
            decoded = decode_numbers(packed, self._limited, self.room)
        except ValueError as error:
            raise damage(self.stored.weights, f"{key}: {error}") from error
        release([packed])
        self.room.release([decoded])
        return decoded

    def _allocate(self, name: str, shape: tuple[int, ...]) -> Int8Array:
        if self.shapes is None:
            return self._limited(shape)
        if shape != self.shapes[name]:
            raise ValueError(f"has the shape {shape}, the model's has {self.shapes[name]}")
        return self._arena(shape)


def decode_numbers(packed: npt.NDArray[np.uint8], limited: Limited, room: Room | None = None) -> Tensor:
    """The tensor of its coded bytes; ValueError when they are damaged, or claim too much."""
    name, shape = compress.float_header(packed)
    dtype = getattr(torch, name)
    limited((*shape, dtype.itemsize))
    if room is None:  # numpy asks for huge pages: a third of the time that torch's memory takes
        size = math.prod(shape) * dtype.itemsize
        tensor: Tensor = torch.from_numpy(np.empty(size, np.uint8)).view(dtype).reshape(shape)
    else:
        tensor = room.empty(shape, dtype)
    compress.decode(packed, out=tensor)
    return tensor


def verify(folder: Path, tensors: Mapping[str, Tensor], room: Room | None = None) -> None:
    """Read the written bundle and compare every tensor bit for bit; ValueError names the first that differs.

    Of what is read a few tensors are in memory at a time; `room` is where the others lie.
    """
    matrices = {key.removesuffix(".weight"): tensor.shape for key, tensor in tensors.items() if tensor.ndim == 2}
    shapes = {name: (rows, columns) for name, (rows, columns) in matrices.items()}
    stored = undisturbed(folder, open_stored)
    decoder, room = Decoder(stored, shapes, Room()), room or Room()
    keys = stored.tensors.keys() | {f"{name}.weight" for name in stored.coded}
    if keys != tensors.keys():
        different = sorted(keys ^ tensors.keys())
        raise ValueError(f"{folder} does not hold the model's tensors: {', '.join(different[:3])}")

    def same(key: str) -> bool:
        read, written = decoder.tensor(key), tensors[key]
        equal = read.dtype == written.dtype and read.shape == written.shape
        equal = equal and torch.equal(_bytes(read), _bytes(written))
        room.release([read, written])
        return equal

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for key, equal in zip(tensors, pool.map(same, tensors), strict=True):
            if not equal:
                raise ValueError(f"{folder}: {key} read back differs from what was written")


def undisturbed(folder: Path, work: Callable[[Path], Read]) -> Read:
    """What `work` makes of the files of a folder, begun again whenever the folder was replaced meanwhile.

    So all of them are of one bundle, and an error is one of the bundle's own.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    pauses = 0
    while True:
        place = folder.resolve()  # a link that is bent meanwhile does not matter
        try:
            held = os.open(place, os.O_RDONLY)  # while it is open, no new folder gets its number
        except OSError as error:
            if pauses == PAUSES or not isinstance(error, FileNotFoundError):
                raise ValueError(f"{folder} is no bundle: {error.strerror}") from error
            pauses += 1
            time.sleep(PAUSE_SECONDS)
            continue
        try:
            with suppress(
                OSError
            ):  # a writer waits a little for its readers; one that is about to replace it has it now
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
            made = work(place)
        except Exception:
            if _is_still(place, held) or time.monotonic() > end:
                raise
        else:
            if _is_still(place, held):
                return made
        finally:
            os.close(held)
        if time.monotonic() > end:
            raise ValueError(f"{folder} was replaced again and again for {PATIENCE_SECONDS:.0f} s while it was read")


def _is_still(place: Path, held: int) -> bool:
    try:
        return os.path.samestat(os.stat(place), os.fstat(held))
    except OSError:
        return False


def _read_tensors(weights: Path) -> dict[str, Tensor]:
    """ValueError names the file when it is damaged, or when nothing here reads its kind."""
    if weights.suffix == CKPT:
        with named(weights):
            return ckpt.read(weights)
    with named(weights), safe_open(weights, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
