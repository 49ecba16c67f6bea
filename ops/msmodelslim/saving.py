"""The files that msModelSlim leaves: dictionaries in numpy files, or safetensors with a description.

Weights are 0400, descriptions, indices and tables 0600.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from slimrun.msmodelslim import npy
from slimrun.ops.files import DESCRIPTION_MODE, WEIGHT_MODE, make_folder, replacing

NUMPY_FILES = {  # file -> suffix of the tensors of a quantized linear that it holds
    "quant_weight.npy": "weight",
    "deq_scale.npy": "deq_scale",
    "input_scale.npy": "input_scale",
    "input_offset.npy": "input_offset",
    "quant_bias.npy": "quant_bias",
    "weight_scale.npy": "weight_scale",
    "weight_offset.npy": "weight_offset",
}
NORMS_FILE = "anti_fp_norm.npy"


def write_numpy(folder: Path, linears: Mapping[str, Mapping[str, Tensor]], norms: Mapping[str, Tensor]) -> None:
    """One file a kind of tensor: {linear name: tensor}, int8 linears only; smoothed norms by their tensors' names.

    A kind that the format does not have leaves no file.
    """
    contents = {
        file: {name: tensors[suffix] for name, tensors in linears.items() if suffix in tensors}
        for file, suffix in NUMPY_FILES.items()
    }
    for file, content in {**contents, NORMS_FILE: dict(norms)}.items():
        if content:
            npy.save(folder / file, content)


def write_safetensors(folder: Path, name: str, tensors: Mapping[str, Tensor], shard_bytes: int | None) -> None:
    """All tensors in `name`, or in shards `stem-00001-of-0000N.safetensors` with `name`.index.json."""
    shards = {name: list(tensors)}
    if shard_bytes is not None:
        pattern = name.removesuffix(".safetensors") + "{suffix}.safetensors"
        split = split_torch_state_dict_into_shards(dict(tensors), filename_pattern=pattern, max_shard_size=shard_bytes)
        shards = split.filename_to_tensors
        if split.is_sharded:
            content = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            write_json(folder / f"{name}.index.json", content)
    for file, keys in shards.items():
        with replacing(folder / file, WEIGHT_MODE) as scratch:
            save_file({key: tensors[key] for key in keys}, scratch, metadata={"format": "pt"})


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and each with a memory of its own, as safetensors wants them: tied weights are stored twice."""
    seen: set[int] = set()
    owned: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.contiguous()
        memory = whole.untyped_storage().data_ptr()
        owned[name] = whole.clone() if memory in seen else whole
        seen.add(memory)
    return owned


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """A description: an object of JSON, 0600."""
    with replacing(path, DESCRIPTION_MODE) as scratch:
        scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """A table, 0600."""
    with replacing(path, DESCRIPTION_MODE) as scratch, scratch.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def writable(folder: Path) -> Path:
    """The folder, made when it is not there; PermissionError if nothing can be written into it."""
    if not os.access(make_folder(folder), os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: no permission to write into this folder")
    return folder


def remove_older(folder: Path, name: str, written: set[str]) -> None:
    """Remove the shards, index or single file that an earlier save of the weights `name` left and this one did not."""
    stem = re.escape(name.removesuffix(".safetensors"))
    ours = re.compile(stem + r"(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
    for path in folder.iterdir():
        if ours.fullmatch(path.name) and path.name not in written:
            path.unlink()
