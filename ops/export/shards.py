"""Safetensors files written tensor by tensor: one alone, or shards with an index, names as Hugging Face's loaders want.

A file begins with the length of its header, then names, types, shapes and places of all tensors in JSON. The header's
room is kept free until the end and filled with spaces, as the format allows, so nothing waits in memory.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from slimrun.ops.memory import release
from slimrun.ops.weights.base import TensorFile, open_file
from slimrun.ops.weights.safetensors import ALIGNMENT, NAMES

GB = 10**9
ENTRY = 120  # bytes of a header's entry beside the name: type, three numbers of a shape, two of a place


def check_size(shard_gb: float) -> None:
    """ValueError when no file could be that small."""
    if not shard_gb > 0:
        raise ValueError(f"shard_gb={shard_gb} is out of range; allowed: more than 0")


class ShardWriter:
    """Writes tensors into `folder`/`stem`.safetensors, or into several files once one would be larger than `shard_gb`.

    `names` are those of the tensors to come, or longer: they tell how much room a header wants.
    """

    def __init__(self, folder: Path, stem: str, shard_gb: float, names: Iterable[str]) -> None:
        self._folder, self._stem, self._limit = folder, stem, shard_gb * GB
        room = 64 + sum(len(json.dumps(name)) + ENTRY for name in names)
        self._room = room + -room % ALIGNMENT
        self._shards: list[dict[str, dict[str, object]]] = []
        self._file: BinaryIO | None = None
        self._offset = self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor (dense, on the CPU)."""
        if self._file is None or (self._offset and self._offset + tensor.nbytes > self._limit):
            self._begin()
        assert self._file is not None
        end = self._offset + tensor.nbytes
        shape, place = list(tensor.shape), [self._offset, end]
        self._shards[-1][name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": place}
        self._file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        release([tensor])
        self._offset, self._total = end, self._total + tensor.nbytes

    def close(self) -> list[Path]:
        """Finish the last file, give all their names, write the index where there are several; the weight files."""
        if self._file is None:
            self._begin()
        self._end()
        count = len(self._shards)
        if count == 1:
            names = [f"{self._stem}.safetensors"]
        else:
            names = [f"{self._stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
            where = {key: name for name, shard in zip(names, self._shards) for key in shard}
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(where.items()))}
            (self._folder / f"{self._stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        for number, name in enumerate(names):
            self._part(number).rename(self._folder / name)
        return [self._folder / name for name in names]

    def _part(self, number: int) -> Path:
        return self._folder / f"{self._stem}.{number}.part"

    def _begin(self) -> None:
        if self._file is not None:
            self._end()
        self._file = self._part(len(self._shards)).open("wb")
        self._file.seek(8 + self._room)
        self._shards.append({})
        self._offset = 0

    def _end(self) -> None:
        assert self._file is not None
        header = json.dumps({"__metadata__": {"format": "pt"}, **self._shards[-1]}, separators=(",", ":")).encode()
        if len(header) > self._room:
            raise RuntimeError(f"the header takes {len(header)} bytes, {self._room} were kept free")
        with self._file as file:
            file.seek(0)
            file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))


class Folder:
    """The tensors in all safetensors files of a folder, read by the package safetensors.

    They are mapped: their pages count as memory until they are released.
    """

    def __init__(self, folder: Path) -> None:
        self.where: dict[str, TensorFile] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._suffixes: dict[str, list[str]] = defaultdict(list)
        for path in sorted(folder.glob("*.safetensors")):
            file = open_file(path)
            for key, header in file.headers().items():
                self.where[key], self._dtypes[key] = file, header.dtype
                name, _, suffix = key.rpartition(".")
                self._suffixes[name].append(suffix)

    def int8(self) -> list[str]:
        """Names of the tensors of int8."""
        return [key for key, dtype in self._dtypes.items() if dtype == torch.int8]

    def tensor(self, key: str) -> Tensor:
        """The tensor as it is stored; ValueError when no file holds it."""
        if key not in self.where:
            raise ValueError(f"{key} was not written")
        return self.where[key].read(key)

    def linear(self, name: str) -> dict[str, Tensor]:
        """The tensors of a linear, by suffix."""
        return {suffix: self.tensor(f"{name}.{suffix}") for suffix in self._suffixes[name]}
