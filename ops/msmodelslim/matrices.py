"""The entries of a model's weights: which are compressed, as int8 matrices, and as what the others are stored."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimrun.msmodelslim import npy
from slimrun.msmodelslim.checks import check_type
from slimrun.ops.compress.base import Int8Array
from slimrun.ops.format.linear import FORMATS

log = logging.getLogger(__name__)

NOT_BUILT = "W16A16S"


def matrices(
    weight: Mapping[str, npy.Entry], quant_model_description: Mapping[str, Any] | None = None
) -> dict[str, Int8Array]:
    """The entries that are compressed, as int8 [n, k].

    With a description these are the `.weight` of its int8 types but norms, without one all. An int8 matrix is taken as
    it is, a matrix of floats if all are integers from -128 to 127. Other floats and vectors are left out with a
    warning that names them. ValueError names any other entry, or says that nothing is left.
    """
    keys = list(weight) if quant_model_description is None else _described(weight, quant_model_description)
    taken: dict[str, Int8Array] = {}
    skipped = []
    for key in keys:
        check_type("key of weight", key, str)
        matrix = _matrix(key, weight[key])
        if matrix is None:
            skipped.append(key)
        else:
            taken[key] = matrix
    if skipped:
        log.warning("not compressed, since they are no int8 matrices: %s", ", ".join(skipped))
    if not taken:
        raise ValueError(f"there is no int8 matrix to compress among the {len(weight)} entries of the weights")
    return taken


def as_array(value: npy.Entry) -> NDArray[Any]:
    """An entry in numpy; bfloat16, which it lacks, as float32."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return value


def as_tensor(key: str, value: Any) -> Tensor:
    """An entry that is stored as it is."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise ValueError(f"{key} is {getattr(value, 'dtype', type(value).__name__)}, expected an array of numbers")
    return torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))


def pseudo_sparse(key: str, matrix: Int8Array, ratio: float, seed: int) -> Int8Array:
    """Each weight kept with probability `ratio`; a generator for each key, so that their order does not matter."""
    name = int.from_bytes(hashlib.sha256(key.encode()).digest(), "little")
    kept = np.random.default_rng([seed, name]).random(matrix.shape, np.float32) < ratio
    return matrix * kept.astype(np.int8)


def _described(weight: Mapping[str, npy.Entry], description: Mapping[str, Any]) -> list[str]:
    """The keys whose types say that they are int8 weights."""
    keys = []
    for key, kind in description.items():
        check_type("key of quant_model_description", key, str)
        if not key.endswith(".weight") or "norm" in key or kind not in (*FORMATS, NOT_BUILT):
            continue
        if kind == NOT_BUILT:
            raise ValueError(f"{key} has the type {kind}, which is not built; allowed: {', '.join(FORMATS)}")
        if key not in weight:
            raise ValueError(f"quant_model_description names {key}, which weight lacks")
        keys.append(key)
    return keys


def _matrix(key: str, value: Any) -> Int8Array | None:
    """The entry as int8 [n, k], None if it is one to leave out."""
    if not isinstance(value, np.ndarray | Tensor):
        raise ValueError(f"{key} is {type(value).__name__}, expected an int8 matrix")
    array = as_array(value)
    matrix = array.ndim == 2 and array.size > 0
    if matrix and array.dtype == np.int8:
        return array
    if matrix and array.dtype.kind == "f" and np.all((array >= -128) & (array <= 127) & (array == np.rint(array))):
        return array.astype(np.int8)
    if array.dtype.kind == "f" or (array.ndim == 1 and array.dtype.kind in "biu"):
        return None
    raise ValueError(f"{key} is {array.dtype} with shape {array.shape}, expected an int8 matrix")
