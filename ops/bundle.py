"""The deployable bundle: what is written, how it is read back, and the proof that both are the same.

A folder (0750) with one weight file (0400; safetensors, or MindSpore's .ckpt), a description in JSON (0600) that names
the type of every tensor, config.json and the tokenizer's files (0600). The layout follows msModelSlim's W8A8S files;
types that end in C hold coded weights as `.weight`, `.index` and `.info`. The description's `container` says which
coder wrote them, so that nobody takes our stream for the one of the Ascend hardware.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ops import compress
from ops.compress.base import Arena, Codec, Parts
from ops.compress.none import NoCompression
from ops.files import DESCRIPTION_MODE, FOLDER_MODE, WEIGHT_MODE, sync

FLOAT = "FLOAT"
STATIC, WEIGHTS_ALONE = ("W8A8S", "W8A8"), "W8A16"  # formats with input grids; the one for float inputs
SAFETENSORS, CKPT = ".safetensors", ".ckpt"  # kinds of weight files; the second is MindSpore's
PARTS = ("info", "index", "weight")  # of a coded weight


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory: decoded tensors by name, and which linears are quantized."""

    tensors: dict[str, Tensor]
    quantized: list[str]
    types: dict[str, str]  # of each quantized linear: its format, whether coded or not


@dataclass(frozen=True)
class Stored:
    """What the files of a bundle hold, weights still coded."""

    tensors: dict[str, Tensor]  # without the weights of quantized linears
    coded: dict[str, dict[str, npt.NDArray[Any]]]  # linear -> stored parts of its weight
    codec: Codec
    types: dict[str, str]
    weights: Path


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    coded: Mapping[str, Parts],
    quant_type: str,
    codec: Codec,
    save_description: Callable[[Path], None],
    suffix: str = SAFETENSORS,
) -> Path:
    """Write the bundle atomically and return the weight file's path.

    `tensors` is everything the model stores, `coded` the coded parts of its int8 weights (by linear),
    `save_description` writes config and tokenizer into a folder, `suffix` is the kind of the weight file. An existing
    bundle is replaced only once the new one is complete on disk; on any failure nothing of the new one is left.
    """
    coded_sign = "C" if codec.container and coded else ""
    own = {name: format_of(name, tensors, quant_type) + coded_sign for name in coded}
    quant_type += coded_sign
    stored = {key: value for key, value in tensors.items() if key.removesuffix(".weight") not in coded}
    stored |= {
        f"{name}.{suffix}": torch.from_numpy(part) for name, parts in coded.items() for suffix, part in parts.items()
    }
    types = {key: FLOAT if key.endswith(".bias") else own.get(_owner(key), FLOAT) for key in stored}
    description: dict[str, Any] = {"model_quant_type": quant_type, **dict(sorted(types.items()))}
    if codec.container and coded:
        description["container"] = {"name": codec.container, "version": codec.version}
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        save_description(scratch)
        weights = scratch / f"quant_model_weight_{quant_type.lower()}{suffix}"
        _write_tensors(weights, stored)
        text = json.dumps(description, indent=2)
        (scratch / f"quant_model_description_{quant_type.lower()}.json").write_text(text + "\n", encoding="utf-8")
        for file in scratch.iterdir():
            file.chmod(WEIGHT_MODE if file == weights else DESCRIPTION_MODE)
            sync(file)
        scratch.chmod(FOLDER_MODE)
        _replace(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return folder / weights.name


def read(folder: Path) -> Bundle:
    """Read a bundle and decode its weights; ValueError names the file or tensor that is wrong."""
    stored = open_stored(folder)
    allocate = Arena()

    def decode(name: str) -> Tensor:
        try:
            return torch.from_numpy(stored.codec.decode(stored.coded[name], allocate))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{stored.weights}: {name}: {error}") from error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        weights = dict(zip(stored.coded, pool.map(decode, stored.coded), strict=True))
    tensors = stored.tensors | {f"{name}.weight": weight for name, weight in weights.items()}
    return Bundle(tensors, list(stored.coded), stored.types)


def open_stored(folder: Path) -> Stored:
    """The tensors of a bundle as they are stored; ValueError names the file that is wrong."""
    description = _description(folder)
    quant_type = str(description.get("model_quant_type"))
    weights = folder / f"quant_model_weight_{quant_type.lower()}{SAFETENSORS}"
    if not weights.exists() and weights.with_suffix(CKPT).exists():
        weights = weights.with_suffix(CKPT)
    tensors = _read_tensors(weights)
    for key in tensors:
        if key not in description:
            raise ValueError(f"{weights} holds {key}, which its description does not name")
    codec = _codec(folder, description)
    quantized = [
        key.removesuffix(".weight")
        for key, tensor in tensors.items()
        if key.endswith(".weight") and description[key] != FLOAT and tensor.dtype == torch.int8
    ]
    coded = {
        name: {part: tensors.pop(key).numpy() for part in PARTS if (key := f"{name}.{part}") in tensors}
        for name in quantized
    }
    types = {name: str(description[f"{name}.weight"]) for name in quantized}
    if codec.container:
        types = {name: kind.removesuffix("C") for name, kind in types.items()}
    return Stored(tensors, coded, codec, types, weights)


def format_of(name: str, tensors: Mapping[str, Tensor], quant_type: str) -> str:
    """The format of a quantized linear: the model's, or weights alone where it keeps a step but no input grid."""
    alone = f"{name}.weight_scale" in tensors and f"{name}.input_scale" not in tensors
    return WEIGHTS_ALONE if alone and quant_type in STATIC else quant_type


def can_decode(codec: Codec) -> bool:
    """Whether what the codec writes can be read back here; the stream of the Ascend hardware cannot."""
    return (codec.container, codec.version) in _containers()


def verify(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read the written bundle and compare every tensor bit for bit; ValueError names the first that differs."""
    found = read(folder).tensors
    if found.keys() != tensors.keys():
        different = sorted(found.keys() ^ tensors.keys())
        raise ValueError(f"{folder} does not hold the model's tensors: {', '.join(different[:3])}")
    for key, tensor in tensors.items():
        same = found[key].dtype == tensor.dtype and found[key].shape == tensor.shape
        if not same or not np.array_equal(_bytes(found[key]), _bytes(tensor)):
            raise ValueError(f"{folder}: {key} read back differs from what was written")


def size(folder: Path) -> int:
    """Bytes of all files of the bundle."""
    return sum(file.stat().st_size for file in folder.iterdir())


def _write_tensors(weights: Path, tensors: Mapping[str, Tensor]) -> None:
    if weights.suffix == SAFETENSORS:
        save_file(dict(tensors), weights, metadata={"format": "pt"})
    else:
        from ops.framework.mindspore import checkpoint

        checkpoint.write(weights, tensors)


def _read_tensors(weights: Path) -> dict[str, Tensor]:
    """ValueError names the file when it is damaged, or when nothing here reads its kind."""
    if weights.suffix == CKPT:
        from ops.framework.mindspore import require

        require()
        from ops.framework.mindspore import checkpoint

        return checkpoint.read(weights)
    try:
        with safe_open(weights, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights}: {error}") from error


def _description(folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("quant_model_description*.json")) if folder.is_dir() else []
    if len(files) != 1:
        raise ValueError(f"{folder} is no bundle: it holds {len(files)} quant_model_description*.json, expected one")
    try:
        description = json.loads(files[0].read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{files[0]}: {error}") from error
    if not isinstance(description, dict):
        raise ValueError(f"{files[0]} holds no JSON object")
    return description


def _codec(folder: Path, description: Mapping[str, Any]) -> Codec:
    container = description.get("container")
    if container is None:
        return NoCompression()
    name, version = container.get("name"), container.get("version")
    known = _containers()
    if not name or (name, version) not in known:
        listed = ", ".join(f"{name} {version}" for name, version in known if name)
        raise ValueError(f"{folder}: container {name} {version} is not known here; known: {listed}")
    return known[name, version]()


def _containers() -> dict[tuple[str, int], type[Codec]]:
    """The codecs of `ops.compress` by what they call their container, so that a new one is one file."""
    found: dict[tuple[str, int], type[Codec]] = {}
    for module in pkgutil.iter_modules(compress.__path__, "ops.compress."):
        for value in vars(importlib.import_module(module.name)).values():
            container, version = getattr(value, "container", None), getattr(value, "version", None)
            # a codec that asks another program for its container (a property) reads nothing of its own
            if isinstance(value, type) and is_dataclass(value) and isinstance(container, str):
                found[container, cast(int, version)] = cast(type[Codec], value)
    return {key: found[key] for key in sorted(found)}


def _owner(key: str) -> str:
    return key.rpartition(".")[0]


def _bytes(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _replace(scratch: Path, folder: Path) -> None:
    """Put the finished scratch folder in the place of `folder`; on failure the old one is back in its place."""
    sync(scratch)
    if folder.exists():
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
    else:
        os.rename(scratch, folder)
    sync(folder.parent)
