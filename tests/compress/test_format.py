"""The bytes themselves are pinned, and so is what they may weigh."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from slimrun.ops import compress

from .arrays import KINDS, Int8Array, pattern, sparse_quantized, w8


def test_golden_bytes() -> None:
    """Worked out by hand from ops/csrc/container.hpp: one constant tile, so no payload."""
    packed = compress.encode(np.full((2, 3), -2, np.int8))
    assert packed[:12].hex() == "534c524e0102000000000100"
    assert np.frombuffer(packed[16:56], "<u8").tolist() == [6, 76, 0, 2, 3]
    assert packed[56:88] == bytes([254, *[0] * 15, *[0] * 16])  # symbols: -2, and none that is rare
    assert packed[88:120] == bytes([127, *[0] * 14, 1] * 2)  # frequencies of the rare and of the common
    assert packed[120:] == bytes([0, 0, 0, 0, 0, 0, 254, 2]) + bytes(4)


@pytest.mark.parametrize(
    ("array", "digest"),
    [
        (pattern(10_000).reshape(100, 100), "3ff07ac6e5442bd0"),
        (np.arange(-128, 128, dtype=np.int8).repeat(50), "0057f8dec2e4bc57"),
        ((np.arange(9000) * 37 % 61 - 30).astype(np.int8), "4f23122a035f32ff"),
    ],
    ids=["pattern", "repeat", "ramp"],
)
def test_golden_digests(array: Int8Array, digest: str) -> None:
    assert hashlib.sha256(compress.encode(array, tile_size=4096)).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("array", "allowance"),
    [(sparse_quantized(1_000_000), 0.010), (sparse_quantized(1_000_000, 0.1), 0.010), (w8(1_000_000), 0.015)],
    ids=["fraction 0.01", "fraction 0.1", "w8"],
)
def test_size_is_close_to_the_entropy(array: Int8Array, allowance: float) -> None:
    bits = 8 * len(compress.encode(array)) / array.size
    assert bits <= compress.entropy_bits(array) * (1 + allowance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ndim", [1, 8])
def test_nothing_grows(kind: str, ndim: int) -> None:
    for n in (1, 100, 5000):
        array = KINDS[kind](n).reshape((n,) + (1,) * (ndim - 1))
        tiles = -(-n // 4096)
        assert len(compress.encode(array, tile_size=4096)) <= n + 104 + 8 * ndim + 12 * tiles


def test_entropy_is_that_of_the_histogram() -> None:
    array = sparse_quantized(100_000)
    share = np.unique(array, return_counts=True)[1] / array.size
    assert compress.entropy_bits(array) == pytest.approx(-(share * np.log2(share)).sum(), rel=1e-12)
    assert compress.entropy_bits(np.arange(-128, 128).astype(np.int8)) == 8
    assert compress.entropy_bits(np.zeros(10, np.int8)) == 0
    assert compress.entropy_bits(np.empty((0, 4), np.int8)) == 0
