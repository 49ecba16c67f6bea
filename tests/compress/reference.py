"""A decoder of one element after the other, written from the headers of ops/csrc alone: slow, and no kernel's."""

from __future__ import annotations

import struct

import numpy as np

from .arrays import Int8Array

LANES = 64


def decode(packed: bytes, only: int | None = None) -> Int8Array:
    """The array of a container (container.hpp), or the values of one tile; no checksum is looked at."""
    ndim, layout, low_bits, tile_size = packed[5], packed[6], packed[7], struct.unpack_from("<I", packed, 8)[0]
    numel, index_bytes = struct.unpack_from("<QQ", packed, 16)
    shape = struct.unpack_from(f"<{ndim}Q", packed, 40)
    index = packed[40 + 8 * ndim :][:index_bytes]
    payload = packed[40 + 8 * ndim + index_bytes :]
    model = Model(index, layout, low_bits, shape, numel)
    tiles = -(-numel // tile_size)
    entries = struct.unpack_from(f"<{tiles}Q", index, model.size)
    offsets = [entry & (1 << 48) - 1 for entry in entries] + [len(payload)]
    values: list[int] = []
    for t, entry in enumerate(entries):
        if only not in (None, t):
            continue
        n = min(tile_size, numel - t * tile_size)
        tile = payload[offsets[t] : offsets[t + 1]]
        kind, value = entry >> 56, entry >> 48 & 255
        values += _rans(tile, n, t * tile_size, model) if kind == 0 else tile if kind == 1 else [value] * n
    flat = np.array(values, np.uint8).view(np.int8)
    return flat.reshape(shape) if only is None else flat


class Model:
    """The stored form of model.hpp."""

    def __init__(self, index: bytes, layout: int, low_bits: int, shape: tuple[int, ...], numel: int) -> None:
        self.low_bits, self.half = low_bits, 1 << (low_bits - 1) if low_bits else 0
        self.row_classes, self.column_classes, levels = layout % 16 + 1, layout // 16 % 2 + 1, layout >> 5
        self.columns = shape[-1] if shape else 1
        rows = numel // self.columns if self.columns else 0
        self.common, self.rare, self.rare_frequencies = index[:16], index[16:32], index[32:48]
        at = 48 + 16 * self.row_classes * self.column_classes
        self.frequencies = [index[i : i + 16] for i in range(48, at, 16)]
        self.row_class, self.column_class, self.steps = [0] * rows, [0] * self.columns, []
        if self.row_classes > 1:
            self.row_class = [index[at + row // 2] >> row % 2 * 4 & 15 for row in range(rows)]
            at += (rows + 1) // 2
        if self.column_classes > 1:
            self.column_class = [index[at + column // 8] >> column % 8 & 1 for column in range(self.columns)]
            at += self.columns // 8
        if levels:
            self.steps = list(struct.unpack_from(f"<{rows}H", index, at))
            at += 2 * rows
        self.size = at

    def value_of(self, high: int) -> int:
        return (high << self.low_bits) - self.half & 255

    def table(self, element: int) -> tuple[bytes, list[int]]:
        """Frequencies and values of the entries at an element of the array."""
        row, column = divmod(element, self.columns)
        if self.row_classes == self.column_classes == 1 and not self.steps:
            return self.frequencies[0], [self.value_of(symbol) for symbol in self.common]
        frequencies = self.frequencies[self.row_class[row] * self.column_classes + self.column_class[column]]
        if not self.steps:
            return frequencies, [self.value_of(symbol) for symbol in self.common]
        return frequencies, [(q * self.steps[row] + 128 >> 8) & 255 for q in range(-7, 9)]


def _rans(tile: bytes, n: int, first: int, model: Model) -> list[int]:
    """The values of a tile (rans.hpp) without an eye for damage."""
    n_escaped, n_raw = int.from_bytes(tile[:3], "little"), int.from_bytes(tile[3:6], "little")
    lanes = [tile[6 + lane] + 256 * tile[6 + LANES + lane] for lane in range(LANES)]
    coded = n - LANES if n >= LANES else n
    planes = tile[len(tile) - -(-coded // 64) * 8 * model.low_bits :]
    end = len(tile) - len(planes)
    stream, raw = iter(tile[6 + 2 * LANES : end - n_raw]), iter(tile[end - n_raw : end])

    def entry(lane: int, frequencies: bytes) -> int:
        slot, start = lanes[lane] % 128, 0
        for number, frequency in enumerate(frequencies):  # noqa: B007 - the entry that owns the slot
            if slot < start + frequency:
                break
            start += frequency
        x = frequency * (lanes[lane] // 128) + slot - start
        lanes[lane] = x if x >= 256 else x * 256 + next(stream)
        return number

    escaped = []
    for i in range(n_escaped):
        place = entry(i % LANES, model.rare_frequencies)
        escaped.append(next(raw) if place == 15 else model.value_of(model.rare[place]))
    rest, values = iter(escaped), []
    for i in range(coded):
        frequencies, entries = model.table(first + i)
        place = entry(i % LANES, frequencies)
        values.append(next(rest) if place == 15 else entries[place])
    assert next(stream, None) is None
    assert next(raw, None) is None
    assert next(rest, None) is None
    for i in range(coded if model.low_bits else 0):
        for bit in range(model.low_bits):
            plane = planes[(i // 64 * model.low_bits + bit) * 8 :][:8]
            values[i] = values[i] + ((plane[i % 64 // 8] >> i % 8 & 1) << bit) & 255
    for i in range(coded, n):
        start = lanes[i % LANES] - 256
        values.append((start // 2 if start % 2 == 0 else -(start + 1) // 2) & 255)
    return values
