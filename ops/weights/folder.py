"""A model's folder, looked at without loading a weight: which files would be loaded, and what their headers say.

What is loaded are the files that transformers takes: `model.safetensors`, else its shards, else `pytorch_model.bin`,
else its shards; and where a framework reads them, all .ckpt files. Whatever else lies in the folder is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from slimrun.ops.errors import Unavailable, first_line
from slimrun.ops.weights.base import open_file

CKPT = ".ckpt"
TRANSFORMERS = (".safetensors", ".bin")  # the formats that transformers loads
INDEX = ".index.json"  # names the shards
SINGLE = ("model.safetensors", "pytorch_model.bin")
OTHER_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", CKPT}
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
BUNDLE = "quant_model_description*.json"
LFS_POINTER = b"version https://git-lfs"


class NoWeights(Unavailable):
    """The folder is a model's, and its weights are not there."""


def check_folder(folder: Path, formats: Collection[str]) -> dict[str, Tensor]:
    """What the files hold that would be loaded: tensors by name, on the meta device.

    Unavailable unless they are whole and nothing says that they are not the weights of a float model.
    """
    check_kind(folder)
    return read_headers(weight_files(folder, formats))


def check_kind(folder: Path) -> None:
    """Unavailable unless the folder has a config.json and, from the names of its files, a float model's weights."""
    if not (folder / "config.json").is_file():
        raise Unavailable(f"{folder} has no config.json; give the folder that save_pretrained wrote")
    if any(folder.glob(BUNDLE)):
        raise Unavailable(
            f"{folder} is a bundle of quantized weights ({BUNDLE}); give the float model that it was made from"
        )
    check_float(_read_object(folder / "config.json"), str(folder / "config.json"))
    for name in ADAPTERS:
        if (folder / name).exists():
            raise Unavailable(
                f"{folder} holds a LoRA adapter ({name}), which would not be applied; merge it into the model "
                "(merge_and_unload, save_pretrained) or move it away"
            )


def check_float(config: Mapping[str, Any], source: str) -> None:
    """Unavailable when a config says that its model's weights are quantized."""
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        told = part.get("quantization_config") or part.get("compression_config")
        if told:
            method = told.get("quant_method", "unnamed") if isinstance(told, Mapping) else told
            raise Unavailable(
                f"{source}: the model is quantized already (quantization_config: {method}); "
                "give the float model that it was made from"
            )


def weight_files(folder: Path, formats: Collection[str]) -> list[Path]:
    """The files whose weights are loaded, of these suffixes, the first one preferred.

    Unavailable when there are none, or the index of shards is wrong.
    """
    told = _read_object(folder / "config.json").get("transformers_weights")
    single = [name for suffix in formats for name in SINGLE if name.endswith(suffix)]
    names = [str(told)] if told else [name + end for name in single for end in ("", INDEX)]
    for name in names:
        file = _inside(folder, name, folder / "config.json")
        if file.is_file():
            return _shards(file) if name.endswith(INDEX) else [file]
    checkpoints = sorted(folder.glob(f"*{CKPT}")) if CKPT in formats else []
    if checkpoints:
        return checkpoints
    others = _named(folder, OTHER_WEIGHTS)
    unloaded = f"; {', '.join(others[:3])} would not be loaded" if others else ""
    names += [f"*{CKPT}"] if CKPT in formats else []
    raise NoWeights(f"{folder} has no weights ({', '.join(names)}){unloaded}")


def strays(folder: Path, formats: Collection[str]) -> list[str]:
    """A note when the folder holds other safetensors than those that are loaded."""
    others = _named(folder, {".safetensors"}, but=weight_files(folder, formats))
    told = f"{', '.join(others[:3])}{f' and {len(others) - 3} more' if len(others) > 3 else ''}"
    return [f"{told}: beside the model's weights in {folder}, not loaded"] if others else []


def read_headers(files: Sequence[Path]) -> dict[str, Tensor]:
    """Tensors by name on the meta device; Unavailable names a file that is damaged."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= open_file(file).headers()
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            with file.open("rb") as stream:
                pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
            raise Unavailable(
                f"{file} is a pointer of Git LFS, not the weights: git lfs pull"
                if pointer
                else f"{file} is truncated or damaged ({first_line(error)}); get it again"
            ) from error
    return tensors


def _named(folder: Path, suffixes: set[str], but: Sequence[Path] = ()) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix in suffixes and file not in but)


def _shards(index: Path) -> list[Path]:
    suffix = Path(index.name.removesuffix(INDEX)).suffix
    named = _read_object(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
        raise Unavailable(f"{index} is damaged (weight_map names no files); get it again")
    shards = [_inside(index.parent, shard, index) for shard in sorted(set(named.values()))]
    for shard in shards:
        if shard.suffix != suffix or not shard.is_file():
            raise Unavailable(f"{index.parent} lacks {shard.name}, which {index.name} lists; get it again")
    return shards


def _inside(folder: Path, name: str, source: Path) -> Path:
    """A file that `source` names; Unavailable when the name leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise Unavailable(f"{source} names {name}, which is outside the folder; get it again from a source you trust")
    return folder / path


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unavailable(f"{file} is damaged ({str(error).splitlines()[0]}); get it again") from error
    if not isinstance(content, dict):
        raise Unavailable(f"{file} is damaged (no JSON object); get it again")
    return content
