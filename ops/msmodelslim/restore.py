"""The way back from the files of `weight_compression.py`: the int8 matrices, and the proof that they are the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimrun.msmodelslim import npy
from slimrun.msmodelslim.matrices import as_array
from slimrun.ops import bundle
from slimrun.ops.compress.base import Int8Array, Limited
from slimrun.ops.compress.nz import NZ


def read_dat(weight_root: str | Path, index_root: str | Path, info_root: str | Path) -> dict[str, Int8Array]:
    """The matrices of the files that `export` wrote into three folders, by key; ValueError names a damaged file."""
    weights = {path.name.removesuffix(".dat"): path for path in sorted(Path(weight_root).glob("*.dat"))}
    if not weights:
        raise ValueError(f"{weight_root} holds no .dat file")
    restored: dict[str, Int8Array] = {}
    for key, path in weights.items():
        index, info = Path(index_root) / path.name, Path(info_root) / path.name
        parts = {"weight": _read(path, "i1"), "index": _read(index, "i1"), "info": _read(info, "<i8")}
        try:
            restored[key] = NZ().decode(parts, Limited(sum(part.nbytes for part in parts.values())))
        except ValueError as error:
            raise ValueError(f"{path}, with index and info of this name: {error}") from error
    return restored


def read_safetensors(folder: str | Path) -> dict[str, Int8Array]:
    """The matrices of the files that `export_safetensors` wrote under their own names, by key.

    ValueError names a damaged file or tensor.
    """
    stored = bundle.read(Path(folder))
    return {f"{name}.weight": stored.tensors[f"{name}.weight"].numpy() for name in stored.quantized}


def verify(original: Mapping[str, npy.Entry], restored: Mapping[str, npy.Entry]) -> None:
    """Prove that both hold the same keys, shapes and numbers; ValueError names the first key that differs.

    `original` may be `matrices(...)` of a model's weights, or matrices of integers in any dtype.
    """
    for key in [*original, *restored]:
        if key not in original or key not in restored:
            raise ValueError(f"{key} is missing in what was {'restored' if key in original else 'compressed'}")
        first, second = as_array(original[key]), as_array(restored[key])
        if first.shape != second.shape:
            raise ValueError(f"{key} differs: shape {first.shape} became {second.shape}")
        different = np.flatnonzero(first != second)
        if different.size:
            raise ValueError(f"{key} differs in {different.size} of {first.size} elements")


def _read(path: Path, dtype: str) -> NDArray[Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    if len(data) % np.dtype(dtype).itemsize:
        raise ValueError(f"{path}: {len(data)} bytes are no whole numbers of {np.dtype(dtype)}: is it truncated?")
    return np.frombuffer(data, dtype)
