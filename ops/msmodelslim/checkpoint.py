"""From the sparse checkpoint that `slimrun.msmodelslim.mindspore` saves to a compressed one, and back.

`compress` does all of it: `extract` the int8 weights, code them with the `Compressor`, `merge` weight, index and info
into one checkpoint beside the scales and everything else, and prove that `restore` gives every number back. What the
coded bytes mean is ours; the entry `slimrun.container` says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import regex
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimrun.msmodelslim import npy
from slimrun.msmodelslim.restore import verify
from slimrun.msmodelslim.weight_compression import PARTS, CompressConfig, Compressor
from slimrun.ops.compress.base import Int8Array, Limited
from slimrun.ops.compress.nz import NZ
from slimrun.ops.errors import nearest
from slimrun.ops.format.linear import FORMATS
from slimrun.ops.weights.ckpt import read, write

WEIGHT = ".weight"
CONTAINER = "slimrun.container"
PATTERN_SECONDS = 1.0  # to match one key; only a pattern that backtracks without end takes longer

Arrays = Mapping[str, NDArray[Any]]


def extract(
    checkpoint: str | Path,
    pattern: str | None = None,
    disable_names: Collection[str] = (),
    save_path: str | Path | None = None,
) -> dict[str, Int8Array]:
    """The int8 weights [n, k] of a sparse checkpoint by key, also written to `save_path` (.npy, 0400) if given.

    `pattern` is a regular expression that is searched in each key that ends in .weight, by default the weights of all
    quantized linears are taken; `disable_names` are keys that are left out. ValueError when nothing is left, when a
    key that is taken holds no int8 matrix, or when the pattern takes too long.
    """
    tensors = _read(checkpoint)
    for name in disable_names:
        if name not in tensors:
            raise ValueError(f"disable_names has invalid key `{name}`{nearest(name, list(tensors))}")
    weights = [key for key in tensors if key.endswith(WEIGHT)]
    if pattern is None:
        scales = {f".{kind.scale}" for kind in FORMATS.values()}  # one of them stands beside each quantized weight
        keys = [key for key in weights if any(key.removesuffix(WEIGHT) + scale in tensors for scale in scales)]
    else:
        keys = _matching(pattern, weights)
    integers = {key: _integers(checkpoint, key, tensors[key]) for key in keys if key not in disable_names}
    if not integers:
        sought = "the weight of a quantized linear" if pattern is None else f"a key that matches {pattern}"
        raise ValueError(f"{checkpoint} holds no int8 weight: {sought} is not among its {len(tensors)} keys")
    if save_path is not None:
        npy.save(save_path, integers)
    return integers


def merge(checkpoint: str | Path, output: str | Path, weight: Arrays, index: Arrays, info: Arrays) -> None:
    """Write `output` (.ckpt, 0400, atomically): the checkpoint with what `Compressor.run` gave instead of its weights.

    A weight NAME.weight becomes NAME.weight (int8, coded), NAME.index (int8) and NAME.info (int64); all other entries
    stay. Nothing is written unless `restore` gives every entry back as it was; ValueError says which differs.
    """
    tensors = _read(checkpoint)
    merged = dict(tensors)
    for key in weight:
        if key not in tensors:
            raise ValueError(f"{checkpoint} lacks the key {key}{nearest(key, list(tensors))}")
        stem = key.removesuffix(WEIGHT)
        del merged[key]
        for suffix, arrays in zip(PARTS, (weight, index, info)):
            if key not in arrays:
                raise ValueError(f"{suffix} lacks the key {key}")
            if arrays[key].size:  # of a layer that is stored uncoded there is no index
                merged[f"{stem}.{suffix}"] = torch.from_numpy(arrays[key])
    merged[CONTAINER] = torch.frombuffer(bytearray(_container()), dtype=torch.uint8)
    write(Path(output), merged, lambda written: verify(tensors, restore(written)))


def restore(checkpoint: str | Path) -> dict[str, Tensor]:
    """All entries of a merged checkpoint, weights decoded to int8 [n, k]; ValueError names what is damaged."""
    tensors = _read(checkpoint)
    container = tensors.pop(CONTAINER, None)
    if container is None or container.numpy().tobytes() != _container():
        raise ValueError(f"{checkpoint} was not merged here: {CONTAINER} is not {_container().decode()}")
    limited = Limited(Path(checkpoint).stat().st_size)
    for key in [key for key in tensors if key.endswith(".info")]:
        stem = key.removesuffix(".info")
        stored = {part: tensors.pop(f"{stem}.{part}", None) for part in PARTS}
        parts = {part: np.empty(0, np.int8) if tensor is None else tensor.numpy() for part, tensor in stored.items()}
        try:
            tensors[f"{stem}{WEIGHT}"] = torch.from_numpy(NZ().decode(parts, limited))
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {stem}{WEIGHT}: {error}") from error
    return tensors


def compress(
    checkpoint: str | Path,
    output: str | Path,
    config: CompressConfig | None = None,
    pattern: str | None = None,
    disable_names: Collection[str] = (),
) -> None:
    """Write the compressed form of a sparse checkpoint as `output`, proven equal: `extract`, `Compressor`, `merge`."""
    weights = extract(checkpoint, pattern, disable_names)
    merge(checkpoint, output, *Compressor(config or CompressConfig(), weight=weights).run())


def _read(path: str | Path) -> dict[str, Tensor]:
    return read(Path(path))


def _container() -> bytes:
    return f"{NZ.container} {NZ.version}".encode()


def _matching(pattern: str, keys: Collection[str]) -> list[str]:
    try:
        return [key for key in keys if regex.search(pattern, key, timeout=PATTERN_SECONDS)]
    except regex.error as error:
        raise ValueError(f"pattern = {pattern!r} is no regular expression: {error}") from error
    except TimeoutError as error:
        raise ValueError(f"pattern = {pattern!r} takes too long: it backtracks without end") from error


def _integers(path: str | Path, key: str, tensor: Tensor) -> Int8Array:
    """The matrix as int8; the original writes the integers as float32."""
    matrix = tensor.to(torch.int8)
    if tensor.ndim != 2 or not torch.equal(matrix.to(tensor.dtype), tensor):
        raise ValueError(
            f"{path}: {key} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected a matrix of integers "
            "from -128 to 127"
        )
    return matrix.numpy()
