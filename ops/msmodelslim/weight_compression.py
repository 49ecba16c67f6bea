"""msModelSlim's weight compression: `CompressConfig`, `Compressor` and its files, on the codec `ops.compress.nz`.

Scripts written for it run with `from slimrun.msmodelslim.weight_compression import CompressConfig, Compressor`. Files
have the names, shapes and types of the original's; what the coded bytes mean is ours (the description says so:
container "slimrun-nz"), unless `executor` is CANN's program. `restore.py` reads ours again and proves that the matrices
are the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from slimrun.msmodelslim import npy, saving, telling
from slimrun.msmodelslim.checks import check_type, file_name
from slimrun.msmodelslim.matrices import as_tensor, matrices, pseudo_sparse
from slimrun.ops.compress import entropy_bits
from slimrun.ops.compress.base import TILING, Int8Array, Parts, to_nz
from slimrun.ops.compress.cann import Cann
from slimrun.ops.compress.nz import NZ
from slimrun.ops.errors import nearest
from slimrun.ops.files import WEIGHT_MODE, replacing, staging

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

PARTS = ("weight", "index", "info")  # of a coded matrix
DETAIL_FILE = "compress_detail.csv"
DETAIL_COLUMNS = ("key", "shape", "raw bytes", "packed bytes", "ratio", "entropy bits")  # packed: index and info too
NOTICE = (
    "Loading %s: a weight file of this kind is a pickle, and to deserialize one from an untrusted source is a risk. "
    "This reader builds arrays and tensors only and executes nothing that is in the file."
)
QUESTION = "Is the weight file from a source that you trust? Type yes to load it: "


@dataclass
class CompressConfig:
    """Keywords, order and defaults of msModelSlim's CompressConfig; TypeError or ValueError on a wrong one.

    do_pseudo_sparse keeps each weight with probability sparse_ratio and zeroes the others, the same ones for the same
    seed. is_debug writes compress_detail.csv into record_detail_root. compress_disable_layers are keys that are stored
    uncoded. multiprocess_num is the number of threads. confirm asks on the terminal before a file is loaded. executor
    is a program that codes in our place, multiprocess_num of it at once: CANN's compress_executor, whose coding Ascend
    hardware decodes; None: ours, which it does not.
    """

    do_pseudo_sparse: bool = False
    sparse_ratio: float = 1
    is_debug: bool = False
    compress_disable_layers: Sequence[str] | None = None
    record_detail_root: str = "./"
    multiprocess_num: int = 1
    _: KW_ONLY
    seed: int = 0
    confirm: bool = False
    executor: str | Path | None = None

    def __post_init__(self) -> None:
        """Validate."""
        check_type("do_pseudo_sparse", self.do_pseudo_sparse, bool)
        ratio = self.sparse_ratio
        number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
        if self.do_pseudo_sparse and not (number and 0 <= ratio <= 1):
            raise ValueError(f"sparse_ratio is invalid, expected an value in [0, 1], but got {ratio}")
        check_type("is_debug", self.is_debug, bool)
        layers = () if self.compress_disable_layers is None else self.compress_disable_layers
        if not isinstance(layers, tuple | list):
            raise TypeError(f"compress_disable_layers must be tuple or list, not {type(layers).__name__}.")
        for layer in layers:
            check_type("Element in compress_disable_layers", layer, str)
        if not isinstance(self.record_detail_root, str | Path):
            raise ValueError(f"record_detail_root is invalid, expected a string, but got {self.record_detail_root}")
        for name, least in (("multiprocess_num", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is invalid, expected an int (>={least}), but got {value}")
        check_type("confirm", self.confirm, bool)
        if self.executor is not None and not isinstance(self.executor, str | Path):
            raise TypeError(f"executor must be str, Path or None, not {type(self.executor).__name__}.")


class Compressor:
    """msModelSlim's Compressor of the weights in the file `weight_path`, or of the dictionary `weight`.

    Like the original's, the constructor reads the file (`config.confirm` asks before), so that a wrong one is known
    before anything else is done; it does nothing besides. With `quant_model_description` (tensor name -> type) the
    weights of the int8 types are compressed, without it every entry; `matrices` says more.
    """

    def __init__(
        self,
        config: CompressConfig,
        weight_path: str | None = None,
        weight: Mapping[str, npy.Entry] | None = None,
        quant_model_description: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(config, CompressConfig):
            raise TypeError(f"Invalid `config`: expected a CompressConfig instance, but received {config}")
        if (weight_path is None) == (weight is None):
            what = "neither" if weight is None else "both"
            raise ValueError(
                "Weight Loading failed! Please provide valid quant weight input: "
                f"weight_path or weight, {what} is given"
            )
        for name, value in (("weight", weight), ("quant_model_description", quant_model_description)):
            if value is not None:
                check_type(name, value, Mapping, "dict")
        self.config = config
        self._codec = NZ(threads=self._threads()) if config.executor is None else Cann(str(config.executor))
        with _named(""):
            self._container = (self._codec.container, self._codec.version)  # asks the program
        self.description = quant_model_description
        self.weight = _load(weight_path, config.confirm) if weight is None else dict(weight)
        self._coded: dict[str, Parts] = {}

    def run(self, weight_transpose: bool = False) -> tuple[Arrays, Arrays, Arrays]:
        """weight, index and info of each matrix, by its key: what `export` writes.

        weight is the coded stream (int8), index 8 bytes a tile (int8), info int64[5]: tiling_k, tiling_n, k, n and 1.
        Of a disabled layer weight is the matrix as fractals (int8 [k1, n1, 16, 32]) and index is empty.
        weight_transpose compresses each matrix transposed. ValueError names the entry that cannot be compressed.
        """
        check_type("weight_transpose", weight_transpose, bool)
        integers = matrices(self.weight, self.description)
        disabled = self.config.compress_disable_layers or ()
        for layer in disabled:
            if layer not in self.weight:
                raise ValueError(f"compress_disable_layers has invalid key `{layer}`{nearest(layer, list(integers))}")
        details = saving.writable(Path(self.config.record_detail_root)) / DETAIL_FILE if self.config.is_debug else None

        def encode(key: str) -> tuple[Parts, tuple[object, ...]]:
            matrix = integers[key]
            if self.config.do_pseudo_sparse and key not in disabled:
                matrix = pseudo_sparse(key, matrix, self.config.sparse_ratio, self.config.seed)
            matrix = np.ascontiguousarray(matrix.T if weight_transpose else matrix)
            with _named(f"{key}: "):
                parts = _uncoded(matrix) if key in disabled else self._codec.encode(matrix)
            return parts, _detail(key, matrix, parts) if details else ()

        at_once = 1 if self.config.executor is None else self._threads()  # ours has threads of its own
        with ThreadPoolExecutor(at_once) as pool:
            done = list(track(pool.map(encode, integers), "compress", len(integers), console=Console(stderr=True)))
        if details:
            saving.write_csv(details, [DETAIL_COLUMNS, *(row for _, row in done)])
        self._coded = coded = {key: parts for key, (parts, _) in zip(integers, done)}
        sizes = [part.nbytes for parts in coded.values() for part in parts.values()]
        telling.compressed(sum(matrix.size for matrix in integers.values()), sum(sizes))
        if self._container[0] == NZ.container:
            telling.not_for_hardware()
        weight, index, info = ({key: parts[part] for key, parts in coded.items()} for part in PARTS)
        return weight, index, info

    def export(self, arr: Mapping[str, NDArray[Any]], path: str | Path, dtype: Any = np.int8) -> None:
        """Write each array of one of `run`'s dictionaries as `<key>.dat` (0400) into the folder `path`, raw bytes.

        ValueError for a dtype that is not the arrays', and for a key that is no file name.
        """
        check_type("arr", arr, Mapping, "dict")
        if dtype not in (np.int8, np.int64):
            raise ValueError("dtype must be numpy.int8, numpy.int64!")
        for key, array in arr.items():
            check_type("key of arr", key, str)
            check_type(f"arr[{key!r}]", array, np.ndarray)
            if key in ("", ".", "..") or any(sign in key for sign in "/\\\0"):
                raise ValueError(f"the key {key!r} is refused: it is to be the name of a file")
            if array.dtype != dtype:
                raise ValueError(f"{key} holds {array.dtype}, but dtype is {np.dtype(dtype)}: give that of the arrays")
        folder = saving.writable(Path(path))
        for key, array in arr.items():
            with replacing(folder / f"{key}.dat", WEIGHT_MODE) as scratch:
                scratch.write_bytes(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())

    def export_safetensors(
        self, path: str | Path, safetensors_name: str | None = None, json_name: str | None = None
    ) -> None:
        """Write all tensors of the model, compressed or not, with their description, into the folder `path`.

        Names and types are those of the description with a C: W8A8S becomes quant_model_weight_w8a8sc.safetensors and
        W8A8SC. The weight file is 0400, the description 0600; both take their places once both are written.
        """
        if self.description is None:
            raise ValueError(
                "export_safetensors needs the types of all tensors: "
                "Compressor(config, weight=..., quant_model_description=...)"
            )
        if not self._coded:
            raise ValueError("export_safetensors needs compressed weights: call run() first.")
        coded_type = f"{self.description[next(iter(self._coded))]}C"
        stem = coded_type.lower()
        weights = file_name("safetensors_name", safetensors_name, f"quant_model_weight_{stem}.safetensors")
        description = file_name("json_name", json_name, f"quant_model_description_{stem}.json")
        types: dict[str, Any] = {key: value for key, value in self.description.items() if key not in self._coded}
        tensors: dict[str, Tensor] = {}
        for key, value in self.weight.items():
            if key not in self._coded:
                if key not in types:
                    raise ValueError(f"quant_model_description does not name {key}")
                tensors[key] = as_tensor(key, value)
        for key, parts in self._coded.items():
            for suffix in PARTS:
                name = f"{key.removesuffix('.weight')}.{suffix}"
                tensors[name], types[name] = torch.from_numpy(parts[suffix]), coded_type
        types["model_quant_type"] = coded_type
        types["container"] = {"name": self._container[0], "version": self._container[1]}
        with staging(saving.writable(Path(path))) as scratch:
            saving.write_safetensors(scratch, weights, saving.apart(tensors), None)
            saving.write_json(scratch / description, types)

    def _threads(self) -> int:
        asked, cores = self.config.multiprocess_num, os.cpu_count() or 1
        if asked > cores:
            log.warning("multiprocess_num=%d is more than the %d cores of this machine, which are used", asked, cores)
        return min(asked, cores)


def _load(path: Any, confirm: bool) -> dict[str, npy.Entry]:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"weight_path must be str, not {type(path).__name__}.")
    file = Path(path)
    if file.suffix != ".npy":
        raise ValueError(f'The filename {path} doesn\'t endswith ".npy".')
    if not file.is_file():
        raise FileNotFoundError(f"The path {path} doesn't exist or is not a file.")
    log.warning(NOTICE, path)
    if confirm and _answer() != "yes":
        raise PermissionError("Loading is prohibited because the data may be from untrusted sources.")
    return npy.load(file)


def _answer() -> str:
    try:
        return input(QUESTION).strip()
    except EOFError:  # nobody is there
        return ""


@contextmanager
def _named(key: str) -> Iterator[None]:
    """What a codec says of a matrix, with its key, and of a run's keys what they are called here."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}{error}".replace("compress.executor=", "executor=")) from error


def _uncoded(matrix: Int8Array) -> Parts:
    """A disabled layer: its fractals, no index, and the sizes that restore it."""
    n, k = matrix.shape
    info = np.array([TILING, TILING, k, n, 1], np.int64)
    return {"weight": to_nz(matrix), "index": np.empty(0, np.int8), "info": info}


def _detail(key: str, matrix: Int8Array, parts: Parts) -> tuple[object, ...]:
    packed = sum(part.nbytes for part in parts.values())
    shape = "x".join(map(str, matrix.shape))
    return key, shape, matrix.nbytes, packed, f"{matrix.nbytes / packed:.4f}", f"{entropy_bits(matrix):.4f}"
