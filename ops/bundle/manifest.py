"""`slimrun.json`: what every tensor and file of a bundle has to be, so that no damage passes for another model.

    {"version": 1,
     "weights": "quant_model_weight_w8a8sc.safetensors",
     "tensors": {"model.norm.weight": {"dtype": "float32", "shape": [64], "crc32c": 2849304}, ...},
     "files": {"config.json": {"bytes": 690, "crc32c": 391830}, ...},
     "float_model": {"tensors": {"model.norm.weight": {"shape": [64]}, ...}, "crc32c": 92830}}

`tensors` are those of the weight file as they are stored, coded ones too; `float_model` are those that the model had
before it was quantized, with a checksum of that list, where the writer knew it. A bundle without a manifest is an older
one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimrun.ops import _native
from slimrun.ops.memory import release

from .description import damage, read_object

NAME, VERSION = "slimrun.json", 1
KEYS = {"version", "weights", "tensors", "files", "float_model"}

Shapes = Mapping[str, Sequence[int]]


def write_manifest(
    folder: Path, weights: Path, tensors: Mapping[str, Tensor], float_model: Shapes | None = None
) -> None:
    """Describe the tensors of the weight file and every other file that is in the folder.

    `float_model` are the shapes of the tensors that the model had before it was quantized.
    """
    others = sorted(file for file in folder.rglob("*") if file.is_file() and file != weights)
    content = {
        "version": VERSION,
        "weights": weights.name,
        "tensors": dict(_described(tensors)),
        "files": {str(file.relative_to(folder)): _file(file) for file in others},
    }
    if float_model is not None:
        shapes = {name: {"shape": list(shape)} for name, shape in float_model.items()}
        content["float_model"] = {"tensors": shapes, "crc32c": _checksum_of(shapes)}
    lines = json.dumps(content, ensure_ascii=False).replace('}, "', '},\n"')  # one a tensor: a person may look for it
    (folder / NAME).write_text(f"{lines}\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, once the files it lists are what it says; None when there is none. ValueError names the file."""
    file = folder / NAME
    if not file.exists():
        return None
    content = read_object(file)
    if content.get("version") != VERSION:
        raise damage(file, f"version {content.get('version')!r} is not known here; known: {VERSION}")
    files, tensors = content.get("files"), content.get("tensors")
    if not isinstance(files, dict) or not isinstance(tensors, dict) or not isinstance(content.get("weights"), str):
        raise damage(file, "lacks weights, tensors or files")
    if unknown := sorted(content.keys() - KEYS):
        raise damage(file, f"says {unknown[0]!r}, which is not known here")
    if "float_model" in content and not _is_whole(content["float_model"]):
        raise damage(file, "float_model is not what was written; get the bundle again")
    for name, said in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise damage(file, f"lists {name!r}, which is not inside the folder")
        if not (folder / name).is_file():
            raise damage(folder / name, f"is missing, which {NAME} lists; get the bundle again")
        if said != _file(folder / name):
            problem = f"is not what was written: it differs from {NAME}; get the bundle again, or delete {NAME} if the "
            raise damage(folder / name, f"{problem}change is meant")
    return content


def float_shapes(manifest: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """The shape of every tensor that the model had before it was quantized; None where the writer did not say."""
    if "float_model" not in manifest:
        return None
    return {name: tuple(said["shape"]) for name, said in manifest["float_model"]["tensors"].items()}


def check_tensors(manifest: Mapping[str, Any], weights: Path, tensors: Mapping[str, Tensor]) -> None:
    """ValueError names the first tensor of the weight file that is missing, too many, or not what was written."""
    check_names(manifest, weights, tensors)
    check_contents(manifest, weights, tensors)


def check_names(manifest: Mapping[str, Any], weights: Path, names: Collection[str]) -> None:
    """ValueError names the first tensor that the weight file lacks, or has beside those that were written."""
    said = manifest["tensors"]
    if manifest["weights"] != weights.name:
        raise damage(weights.with_name(NAME), f"is of the weight file {manifest['weights']!r}, not of {weights.name}")
    different = sorted(said.keys() ^ set(names))
    if different:
        where = "is not in" if different[0] in said else "is in"
        raise damage(weights, f"{different[0]} {where} the file, unlike {NAME} says; get the bundle again")


def check_contents(manifest: Mapping[str, Any], weights: Path, tensors: Mapping[str, Tensor]) -> None:
    """ValueError names the first of these tensors of the weight file, some or all, that is not what was written."""
    for name, described in _described(tensors):
        if manifest["tensors"][name] != described:
            raise damage(weights, f"{name} is not what was written: it differs from {NAME}; get the bundle again")


def _described(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Type, shape and checksum of each tensor, in their order; those of mapped files leave memory again."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (name, tensor), number in zip(tensors.items(), pool.map(checksum, tensors.values()), strict=True):
            release([tensor])
            dtype = str(tensor.dtype).removeprefix("torch.")
            yield name, {"dtype": dtype, "shape": list(tensor.shape), "crc32c": number}


def _file(file: Path) -> dict[str, int]:
    content = file.read_bytes()
    return {"bytes": len(content), "crc32c": _native.crc32c(np.frombuffer(content, np.uint8))}


def checksum(tensor: Tensor) -> int:
    """CRC-32C of the bytes of its numbers."""
    return _native.crc32c(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _checksum_of(shapes: Any) -> int:
    return _native.crc32c(np.frombuffer(json.dumps(shapes, sort_keys=True).encode(), np.uint8))


def _is_whole(said: Any) -> bool:
    """Whether the list of the float model's tensors is the one that was written."""
    return isinstance(said, dict) and said.get("crc32c") == _checksum_of(said.get("tensors"))
