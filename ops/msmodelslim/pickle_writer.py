"""Pickles of arrays and tensors as numpy and torch write them, but equal bytes for equal content.

torch writes beside a tensor where its memory lies, and on which device; here neither is in the file.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2
from torch.storage import _load_from_bytes

ARRAY_PROTOCOL, STORAGE_PROTOCOL = 4, 2  # numpy's and torch's
STORAGE_START = (0x1950A86A20F9469CFC6C, 1001)  # magic and version that torch writes before a storage
MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
STORAGES = {  # torch names them as it does its types of tensors
    getattr(torch, f"{name}Tensor").dtype: getattr(torch, f"{name}Storage")
    for name in ("Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double")
}
KEY, DEVICE = "0", "cpu"


def dump(value: Any, stream: BinaryIO) -> None:
    """Write what numpy and torch load as the same value, tensors on the CPU."""
    _Pickler(stream, protocol=ARRAY_PROTOCOL).dump(value)


@dataclass(frozen=True)
class _Storage:
    """The memory of a tensor."""

    tensor: Tensor


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Tensors with their storage in torch's own serialization; all else as it reduces itself."""
        if isinstance(value, _Storage):
            return _load_from_bytes, (_serialized(value),)
        if type(value) is not Tensor or value.dtype not in STORAGES:
            return NotImplemented
        place = value.storage_offset(), tuple(value.shape), value.stride()
        return _rebuild_tensor_v2, (_Storage(value), *place, value.requires_grad, OrderedDict())


class _StoragePickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        """What torch says of a storage before its bytes."""
        if not isinstance(value, _Storage):
            return None
        dtype = value.tensor.dtype
        return "storage", STORAGES[dtype], KEY, DEVICE, value.tensor.untyped_storage().nbytes() // dtype.itemsize, None


def _serialized(storage: _Storage) -> bytes:
    """Magic, version, machine, the storage's type and size, its key, the bytes: each a pickle, but the last."""
    stream, memory = io.BytesIO(), storage.tensor.untyped_storage()
    for part in (*STORAGE_START, MACHINE):
        pickle.dump(part, stream, protocol=STORAGE_PROTOCOL)
    _StoragePickler(stream, protocol=STORAGE_PROTOCOL).dump(storage)
    pickle.dump([KEY], stream, protocol=STORAGE_PROTOCOL)
    stream.write((memory.nbytes() // storage.tensor.dtype.itemsize).to_bytes(8, "little"))
    stream.write(torch.empty(0, dtype=torch.uint8, device=memory.device).set_(memory).cpu().numpy().data)
    return stream.getvalue()
