"""Lossless coding of int8 arrays and of wider numbers: a tile-indexed, checksummed order-0 entropy coder.

The container of an int8 array has three sections, which a safetensors file stores as three tensors; one after the other
they are the contiguous form that `encode` returns. The format is described in `ops/csrc/container.hpp`; wider numbers
are a container a byte of them (`floats.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slimrun.ops import _native
from slimrun.ops.compress import floats

CONTAINER_NAME: Final = "slimrun"
CONTAINER_VERSION: Final = _native.VERSION
NUMBERS: Final = floats.DTYPES  # what is coded besides int8
TILE_KINDS: Final = ("rans", "raw", "constant")
TILE_SIZE: Final = 65536  # elements; half of it costs 0.4 % more, 2^20 costs 0.4 % less

Buffer = bytes | bytearray | memoryview | NDArray[Any]


class Sections(NamedTuple):
    """The sections of a container, as the flat tensors that a file stores; little-endian on any host."""

    info: NDArray[np.int64]  # [5 + ndim]: magic, version, shape, sizes, checksum of info and index
    # [64 or more + 12 tiles]: the model, and offset, kind and checksum of each tile; hides tuple.index
    index: NDArray[np.int8]  # type: ignore[assignment]
    payload: NDArray[np.int8]  # [packed bytes]: the tiles


@dataclass(frozen=True)
class ContainerInfo:
    """What a container holds, known without decoding it."""

    shape: tuple[int, ...]
    tile_size: int  # elements
    n_tiles: int
    low_bits: int  # bits of each element that are stored as they are
    row_classes: int  # groups of rows with statistics of their own, 1 to 16
    column_classes: int  # likewise of columns, 1 or 2
    levels: bool  # whether rows have grids of their own
    packed_bytes: int  # all three sections
    raw_bytes: int
    tile_bytes: tuple[int, ...]  # packed bytes of each tile
    tile_kinds: tuple[str, ...]  # "rans", "raw" or "constant" of each

    @property
    def ratio(self) -> float:
        """raw / packed: 2.3 for a sparse-quantized matrix, 0 for an empty array."""
        return self.raw_bytes / self.packed_bytes


def encode(array: ArrayLike, *, tile_size: int = TILE_SIZE, threads: int = 0) -> bytes:
    """Encode an array of any shape with up to 8 dimensions; one that is not contiguous is copied.

    int8, int32, int64, float16, float32, float64, and bfloat16 as a tensor. Every bit comes back, of NaN too; numbers
    wider than a byte take a header of 24 bytes, and what an int8 array takes for each of their bytes.

    tile_size is in elements, a power of two from 4096 to 2^20; threads 0 uses every core. The bytes depend on neither
    the number of threads nor the host. At most 168 bytes and 12 a tile are added to the array's own size.
    Raises TypeError for another dtype, ValueError for a shape or parameter that the format does not have.
    """
    return encode_to_array(array, tile_size=tile_size, threads=threads).tobytes()


def encode_to_array(array: ArrayLike, *, tile_size: int = TILE_SIZE, threads: int = 0) -> NDArray[np.uint8]:
    """Like `encode`, but the bytes as the array in which they were made: copied, large ones take twice as long."""
    name, bits = floats.bits_of(array)
    return _encode(floats.planes_of(bits) if name else _int8(array)[None], tile_size, threads, name)


def encode_sections(array: ArrayLike, *, tile_size: int = TILE_SIZE, threads: int = 0) -> Sections:
    """Like `encode`, but the three sections as views of one buffer."""
    return split(_encode(_int8(array)[None], tile_size, threads))


def decode(buffer: Buffer, out: Any = None, *, threads: int = 0, max_bytes: int | None = None) -> NDArray[Any]:
    """Decode a container and verify every checksum.

    `out`, if given, is a C-contiguous array or CPU tensor of the container's dtype and shape, which is filled and
    returned; after an error its content is undefined. bfloat16, which numpy lacks, comes as its bits in uint16.
    `buffer` may be a view of a mapped file: nothing of it is copied.
    Every 12 bytes of a container may claim 2^20 elements: give `out` or `max_bytes` for one that you do not trust.
    Raises ValueError that says what is wrong with the bytes or with `out`.
    """

    def allocate(shape: tuple[int, ...]) -> NDArray[np.int8]:
        size = math.prod(shape)
        if max_bytes is not None and size > max_bytes:
            raise ValueError(f"container: claims {size} bytes, more than max_bytes = {max_bytes}")
        try:
            return np.empty(shape, np.int8)
        except MemoryError:
            raise ValueError(f"container: claims {size} bytes, for which there is no memory") from None

    packed = _packed(buffer)
    if floats.is_coded(packed):
        return _decode_floats(packed, out, allocate, threads)
    return decode_sections(*split(buffer), out=allocate if out is None else out, threads=threads)


def decode_sections(
    info: NDArray[Any],
    index: NDArray[Any],
    payload: NDArray[Any],
    out: NDArray[np.int8] | Callable[[tuple[int, ...]], NDArray[np.int8]] | None = None,
    threads: int = 0,
) -> NDArray[np.int8]:
    """Like `decode`, from the three sections; only their bytes matter, not their dtypes.

    `out` can also be a function that gives such an array for a shape.
    """
    container = _open(info, index, payload)
    if out is None:
        out = np.empty(container.shape, np.int8)
    elif callable(out):
        out = out(container.shape)
    view = np.asarray(out)
    if view.dtype != np.int8:
        raise TypeError(f"out has dtype {view.dtype}, expected int8")
    if view.shape != container.shape or not view.flags.c_contiguous or not view.flags.writeable:
        raise ValueError(f"out: must be a writable C-contiguous array of shape {container.shape}, not of {view.shape}")
    container.decode_into(view, threads)
    return out


def decode_tile(buffer: Buffer, i: int) -> NDArray[Any]:
    """Decode the elements i * tile_size .. (i + 1) * tile_size of the array in row-major order, 1-D, alone.

    Raises ValueError if there is no such tile or the container is not valid; other tiles are not looked at.
    """
    packed = _packed(buffer)
    if not floats.is_coded(packed):
        return _open(*split(packed)).decode_tile(i)
    name, planes = _open_floats(packed)
    tiles = np.stack([plane.decode_tile(i) for plane in planes])
    return floats.numbers(name, floats.merged(name, tiles))


def split(buffer: Buffer) -> Sections:
    """Cut a container into its sections, as views of `buffer`. Raises ValueError if the sizes do not add up."""
    packed = _packed(buffer)
    info, index, _ = _native.section_sizes(packed)
    return Sections(
        packed[:info].view(np.dtype("<i8")),
        packed[info : info + index].view(np.int8),
        packed[info + index :].view(np.int8),
    )


def inspect(container: Buffer | Sections) -> ContainerInfo:
    """Validate all but the tiles and tell what the container holds. Raises ValueError."""
    sections = container if isinstance(container, Sections) else split(container)
    opened = _open(*sections)
    tile_bytes, tile_kinds = opened.tiles()
    return ContainerInfo(
        shape=opened.shape,
        tile_size=opened.tile_size,
        n_tiles=opened.n_tiles,
        low_bits=opened.low_bits,
        row_classes=opened.row_classes,
        column_classes=opened.column_classes,
        levels=opened.levels,
        packed_bytes=sum(section.nbytes for section in sections),
        raw_bytes=int(np.prod(opened.shape, dtype=np.int64)),
        tile_bytes=tuple(tile_bytes.tolist()),
        tile_kinds=tuple(TILE_KINDS[kind] for kind in tile_kinds.tolist()),
    )


def entropy_bits(array: ArrayLike) -> float:
    """Order-0 entropy of an int8 array in bits per element, 0 if empty; TypeError for another dtype."""
    return _native.entropy_bits(_int8(array))


def float_header(buffer: Buffer) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) of coded numbers wider than a byte, known without decoding it; ValueError when it is none."""
    name, opened = _open_floats(_packed(buffer))
    return name, opened[0].shape


def _decode_floats(
    packed: NDArray[np.uint8], out: Any, allocate: Callable[[tuple[int, ...]], NDArray[np.int8]], threads: int
) -> NDArray[Any]:
    """What `decode` does, of numbers wider than a byte."""
    name, opened = _open_floats(packed)
    shape = opened[0].shape
    filled = None
    if out is not None:
        given, filled = floats.bits_of(out)
        if given != name:
            raise TypeError(f"out has dtype {getattr(out, 'dtype', None)}, expected {name}")
        start = out.data_ptr() if hasattr(out, "data_ptr") else out.ctypes.data
        if filled.shape != shape or not filled.flags.writeable or filled.ctypes.data != start:  # it would be a copy
            raise ValueError(f"out: must be a writable C-contiguous array of shape {shape}, not of {filled.shape}")
    if filled is None:
        filled = allocate((*shape, len(opened))).view(floats.BITS[name])[..., 0]
    _native.decode_numbers_into(opened, filled, threads)
    return floats.numbers(name, filled) if out is None else out


def _open_floats(packed: NDArray[np.uint8]) -> tuple[str, list[_native.Container]]:
    """dtype and opened plane containers; ValueError unless they belong together."""
    name, containers = floats.open_planes(packed)
    opened = [_open(*split(container)) for container in containers]
    if any((plane.shape, plane.tile_size) != (opened[0].shape, opened[0].tile_size) for plane in opened):
        raise ValueError("floats: planes of different shapes")
    return name, opened


def _packed(buffer: Buffer) -> NDArray[np.uint8]:
    return _flat(np.asarray(buffer) if hasattr(buffer, "__array__") else np.frombuffer(buffer, np.uint8))


def _encode(planes: NDArray[np.int8], tile_size: int, threads: int, name: str = "") -> NDArray[np.uint8]:
    """Containers of planes [w, *shape], one after the other; of numbers, under the name of their dtype."""
    if not 0 <= tile_size <= 1 << 20:
        raise ValueError(f"tile_size = {tile_size}: must be a power of two from 4096 to 1048576")
    first = floats.head_size(len(planes)) if name else 0
    bound = _native.encode_bound(planes[0, ...], tile_size)  # an array also where the shape is ()
    packed = np.empty(first + len(planes) * bound, np.uint8)
    end, sizes = first, []
    for index in range(len(planes)):
        sizes.append(_native.encode_into(planes[index, ...], packed[end : end + bound], tile_size, threads))
        end += sizes[-1]
    packed[:first] = np.frombuffer(floats.head(name, sizes) if name else b"", np.uint8)
    packed.resize(end, refcheck=False)  # gives back what packing saved; nobody else has seen the array
    return packed


def _int8(array: ArrayLike) -> NDArray[np.int8]:
    values = np.asarray(array, order="C")
    if values.dtype != np.int8:
        raise TypeError(f"array has dtype {values.dtype}, expected int8")
    return values


def _open(info: NDArray[Any], index: NDArray[Any], payload: NDArray[Any]) -> _native.Container:
    return _native.Container(_flat(info), _flat(index), _flat(payload))


def _flat(section: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(section).reshape(-1).view(np.uint8)
