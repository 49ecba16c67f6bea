"""Arrays that reach every path of the codec, always the same ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int8Array = NDArray[np.int8]


def pattern(n: int) -> Int8Array:
    """Small values and rare outliers from integer arithmetic alone, the same with every version of numpy."""
    i = np.arange(n, dtype=np.uint64)
    mixed = (i * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)) >> np.uint64(33)
    bits = np.unpackbits(mixed.astype("<u4").view(np.uint8)).reshape(n, 32)
    small = bits[:, :12].sum(axis=1).astype(np.int16) - 6
    return np.where(mixed % 97 == 0, (mixed % 256).astype(np.int16) - 128, small).astype(np.int8)


def gaussian(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(n, dtype=np.float32)


def sparse_quantized(n: int, fraction: float = 0.01) -> Int8Array:
    """int4 codes with outliers on the same grid: the given fraction of the weights lies beyond 7."""
    weight = gaussian(n)
    threshold = np.quantile(np.abs(weight), 1 - fraction)
    return np.clip(np.round(weight / (threshold / 7)), -127, 127).astype(np.int8)


def w8(n: int) -> Int8Array:
    """Symmetric 8-bit quantization on the largest magnitude."""
    weight = gaussian(n)
    return np.round(weight / np.abs(weight).max() * 127).astype(np.int8)


def noise(n: int) -> Int8Array:
    return np.random.default_rng(1).integers(-128, 128, n, dtype=np.int8)


def wide_tail(n: int) -> Int8Array:
    """Few symbols and every value of int8 as an outlier: both escapes occur."""
    values = pattern(n)
    outliers = values[:: max(1, n // 300)]
    outliers[:] = noise(len(outliers))
    return values


def constant_then_noise(n: int) -> Int8Array:
    values = noise(n)
    values[: n // 2] = -5
    return values


def unequal_rows(n: int, columns: int = 64, seed: int = 0) -> Int8Array:
    """One grid for rows of very different scale: statistics by class of rows."""
    weight = gaussian(n * columns, seed).reshape(n, columns) * np.geomspace(0.2, 1, n, dtype=np.float32)[:, None]
    return np.clip(np.round(weight * 7), -127, 127).astype(np.int8)


def unequal_columns(rows: int, columns: int) -> Int8Array:
    """Every third column is five times smaller; enough elements for two classes of columns to be tried."""
    weight = gaussian(rows * columns).reshape(rows, columns)
    weight[:, ::3] /= 5
    return np.clip(np.round(weight * 3), -127, 127).astype(np.int8)


def grids_by_row(rows: int, columns: int) -> Int8Array:
    """A coarse grid of each row's own, written on the scale of its largest value."""
    weight = gaussian(rows * columns).reshape(rows, columns)
    step = np.quantile(np.abs(weight), 0.99, axis=1, keepdims=True) / 7
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    return np.clip(np.round(np.round(weight / step) * step / scale), -127, 127).astype(np.int8)


MATRICES = {
    "unequal_rows": unequal_rows(300),
    "unequal_columns": unequal_columns(256, 1088),
    "unequal_rows_and_columns": (unequal_columns(1024, 1088) * np.geomspace(1, 4, 1024)[:, None]).astype(np.int8),
    "grids_by_row": grids_by_row(200, 192),
    "large_low_bits": w8(1_100_000),
}
KINDS = {
    "pattern": pattern,
    "sparse_quantized": sparse_quantized,
    "w8": w8,
    "noise": noise,
    "wide_tail": wide_tail,
    "constant_then_noise": constant_then_noise,
}
