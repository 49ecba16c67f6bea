"""Matrices in the tile order of Ascend hardware: the order itself, the coded bytes, and what is refused."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slimrun.ops import _native, compress
from slimrun.ops.compress.base import FRACTAL, TILING, Parts, from_nz, to_nz
from slimrun.ops.compress.nz import NZ

from .arrays import KINDS, Int8Array, noise, pattern, sparse_quantized
from .test_corruption import crc32c

HEADER = 88


def matrix(n: int, k: int, kind: str = "sparse_quantized") -> Int8Array:
    return KINDS[kind](n * k).reshape(n, k)


def mixed(n: int, k: int) -> Int8Array:
    """Tiles of every kind: coded, raw and constant."""
    weight = matrix(n, k)
    weight[:, :256] = noise(n * 256).reshape(n, 256)
    weight[128:256, 256:512] = -3
    return weight


def tiles_of(fractals: Int8Array) -> list[Int8Array]:
    """The tiles in the order of the index, stated by loops over fractals."""
    k1, n1 = fractals.shape[:2]
    return [
        np.concatenate([fractals[i, j].ravel() for i in range(k, min(k + 8, k1)) for j in range(n, min(n + 8, n1))])
        for n in range(0, n1, 8)
        for k in range(0, k1, 8)
    ]


def entries_of(index: Int8Array) -> list[tuple[int, int, int, int]]:
    """Offset, size, value and kind of each tile."""
    return list(struct.iter_unpack("<IHbB", index.tobytes()))


def sealed(parts: Parts) -> Parts:
    """The same container with the checksum of header, model and index made right."""
    payload = parts["weight"].tobytes()
    checksum = crc32c(payload[:20] + payload[24:HEADER] + parts["index"].tobytes())
    return parts | {"weight": np.frombuffer(payload[:20] + struct.pack("<I", checksum) + payload[24:], np.int8)}


def changed(parts: Parts, name: str, at: int, field: bytes) -> Parts:
    part = bytearray(parts[name].tobytes())
    part[at : at + len(field)] = field
    return parts | {name: np.frombuffer(bytes(part), parts[name].dtype)}


def test_a_small_matrix_by_hand() -> None:
    """17 x 33 takes 2 x 2 fractals; the value at row r, column c is 10 r + c + 1 modulo 100."""
    weight = (np.add.outer(10 * np.arange(17), np.arange(33)) % 100 + 1).astype(np.int8)
    fractals = to_nz(weight)
    assert fractals.shape == (2, 2, 16, 32)
    assert fractals[0, 0, 0, :3].tolist() == [1, 2, 3]
    assert fractals[0, 0, 1, :3].tolist() == [11, 12, 13]
    assert fractals[0, 0, 15, 31] == 82  # 150 + 31 + 1
    assert fractals[0, 1, 0, :2].tolist() == [61, 62]  # row 16
    assert fractals[1, 0, :3, 0].tolist() == [33, 43, 53]  # column 32
    assert fractals[1, 1, 0, 0] == 93
    assert np.count_nonzero(fractals) == 17 * 33
    assert fractals.ravel()[[512, 1024, 1536]].tolist() == [61, 33, 93]
    assert np.array_equal(from_nz(fractals, 17, 33), weight)


def test_every_element_is_where_the_formula_says() -> None:
    weight = pattern(50 * 100).reshape(50, 100)
    flat = to_nz(weight).ravel()
    r, c = np.indices(weight.shape)
    n1 = -(-50 // 16)
    assert np.array_equal(flat[((c // 32 * n1 + r // 16) * 16 + r % 16) * 32 + c % 32], weight)


def test_shapes_that_are_no_matrix_are_named() -> None:
    for shape in ((5,), (0, 4), (4, 0), (1, 2, 3), ()):
        with pytest.raises(ValueError, match=r"^weight has the shape \("):
            to_nz(np.zeros(shape, np.int8))
    with pytest.raises(TypeError, match="float32"):
        to_nz(np.zeros((2, 2), np.float32))
    fractals = np.zeros((2, 1, 16, 32), np.int8)
    for n, k in ((17, 33), (16, 65), (16, 32), (0, 64), (16, -64)):
        with pytest.raises(ValueError, match="fractals have the shape"):
            from_nz(fractals, n, k)
    with pytest.raises(TypeError, match="uint8"):
        from_nz(fractals.astype(np.uint8), 16, 64)  # type: ignore[arg-type]
    fractals[1, 0, 3, 31] = 1
    with pytest.raises(ValueError, match="beyond its last row or column"):
        from_nz(fractals, 16, 63)


def test_golden_bytes() -> None:
    """Worked out by hand from ops/csrc/nz.hpp: one constant tile, so nothing behind the header."""
    parts = NZ().encode(np.full((16, 32), -2, np.int8))
    payload = parts["weight"].tobytes()
    assert payload[:20] == b"SLNZ" + struct.pack("<BBHIII", 1, 0, 0, 1, 1, HEADER)
    assert payload[24:56] == bytes([254, *[0] * 15, *[0] * 16])
    assert payload[56:] == bytes([127, *[0] * 14, 1] * 2)
    assert parts["index"].tobytes() == struct.pack("<IHbB", HEADER, 0, -2, 2)
    assert struct.unpack_from("<I", payload, 20)[0] == crc32c(payload[:20] + payload[24:] + parts["index"].tobytes())
    assert parts["info"].tolist() == [8, 8, 32, 16, 1]


@pytest.mark.parametrize(
    ("weight", "digest"),
    [
        (pattern(300 * 700).reshape(300, 700), "1d04fdd084e5a4f4"),
        (pattern(15 * 31).reshape(15, 31), "5742e85ffb4aca18"),
    ],
    ids=["many tiles", "less than a fractal"],
)
def test_golden_digests(weight: Int8Array, digest: str) -> None:
    parts = NZ().encode(weight)
    assert hashlib.sha256(parts["weight"].tobytes() + parts["index"].tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("shape", [(300, 700), (128, 256), (129, 257), (1, 1000), (1000, 1)])
def test_tiles_are_in_the_order_of_the_index(shape: tuple[int, int]) -> None:
    """Noise is stored raw, so that each tile's bytes can be compared with those that loops over fractals find."""
    weight = noise(shape[0] * shape[1]).reshape(shape)
    weight[weight == 0] = 1
    parts = NZ().encode(weight)
    payload = parts["weight"].tobytes()
    entries, tiles = entries_of(parts["index"]), tiles_of(to_nz(weight))
    k1, n1 = -(-shape[1] // FRACTAL[1]), -(-shape[0] // FRACTAL[0])
    assert len(entries) == len(tiles) == -(-k1 // TILING) * -(-n1 // TILING)
    at = HEADER
    for (offset, size, _, kind), tile in zip(entries, tiles, strict=True):
        assert offset == at
        packed = payload[offset + 4 : offset + 4 + size]
        assert _native.crc32c(np.frombuffer(packed, np.uint8)) == struct.unpack_from("<I", payload, offset)[0]
        if kind == 1:
            assert packed == tile.tobytes()
        at += 4 + size
    assert at == len(payload)
    if min(shape) > 1:
        assert entries[0][3] == 1


def test_all_kinds_of_tiles_occur() -> None:
    weight = mixed(256, 768)
    parts = NZ().encode(weight)
    assert [kind for *_, kind in entries_of(parts["index"])] == [1, 0, 0, 1, 2, 0]
    assert entries_of(parts["index"])[4][1:3] == (0, -3)
    assert np.array_equal(NZ().decode(parts), weight)


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(1, 600), st.sampled_from(sorted(KINDS)), st.integers(0, 3))
@example(1, 1, "pattern", 0)
@example(15, 31, "noise", 1)
@example(16, 32, "noise", 1)
@example(576, 1536, "sparse_quantized", 2)
@example(576, 576, "w8", 0)
def test_any_matrix_survives(n: int, k: int, kind: str, threads: int) -> None:
    weight = matrix(n, k, kind)
    codec = NZ(threads)
    parts = codec.encode(weight)
    assert [parts[name].dtype for name in ("weight", "index", "info")] == [np.int8, np.int8, np.int64]
    assert parts["info"].tolist() == [8, 8, k, n, 1]
    decoded = codec.decode(parts)
    assert decoded.dtype == np.int8
    assert decoded.flags.c_contiguous
    assert np.array_equal(decoded, weight)


def test_a_view_is_coded_like_its_copy() -> None:
    weight = matrix(400, 300)
    view = weight.T[::2]
    assert NZ().encode(view)["weight"].tobytes() == NZ().encode(view.copy())["weight"].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_change_a_byte(kind: str) -> None:
    weight = matrix(1111, 2121, kind)  # enough tiles for two workers and more
    parts = NZ(1).encode(weight)
    for threads in (0, 2, 5, 100):
        again = NZ(threads).encode(weight)
        assert all(again[name].tobytes() == parts[name].tobytes() for name in parts)
        assert np.array_equal(NZ(threads).decode(parts), weight)


@pytest.mark.parametrize("fraction", [0.01, 0.1])
def test_size_is_close_to_the_entropy(fraction: float) -> None:
    weight = sparse_quantized(1024 * 1024, fraction).reshape(1024, 1024)
    parts = NZ().encode(weight)
    bits = 8 * sum(part.nbytes for part in parts.values()) / weight.size
    assert bits <= compress.entropy_bits(weight) * 1.016


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_grows(kind: str) -> None:
    for shape in ((1, 1), (100, 100), (130, 600)):
        parts = NZ().encode(matrix(*shape, kind=kind))
        assert parts["weight"].size <= to_nz(matrix(*shape, kind=kind)).size + HEADER + parts["index"].size // 2


def test_only_bytes_and_values_matter() -> None:
    weight = matrix(100, 200)
    parts = NZ().encode(weight)
    other = {
        "weight": parts["weight"].view(np.uint8).reshape(1, -1),
        "index": parts["index"].view(np.uint8),
        "info": parts["info"].astype(">u4").reshape(5, 1),
    }
    assert np.array_equal(NZ().decode(other), weight)


@pytest.mark.parametrize("shape", [(16, 32), (100, 200), (1, 1)])
def test_a_matrix_that_was_not_coded(shape: tuple[int, int]) -> None:
    weight = matrix(*shape)
    fractals = to_nz(weight)
    info = np.array([8, 8, shape[1], shape[0], 1])
    for index in (np.empty((0, 0), np.int8), np.empty(0, np.uint8)):
        for stored in (fractals, fractals.ravel(), fractals.view(np.uint8)):
            assert np.array_equal(NZ().decode({"weight": stored, "index": index, "info": info}), weight)
        for wrong in (fractals.ravel()[1:], fractals[:, :, :8], fractals.swapaxes(2, 3), fractals.astype(np.int16)):
            with pytest.raises(ValueError, match=r"^weight: "):
                NZ().decode({"weight": wrong, "index": index, "info": info})


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ([8, 8, 200, 100], "4 elements of int64, expected 5 integers"),
        ([8.0, 8, 200, 100, 1], "of float64, expected 5 integers"),
        ([8, 4, 200, 100, 1], "expected \\[8, 8, k, n, 1\\]"),
        ([8, 8, 200, 100, 2], "expected \\[8, 8, k, n, 1\\]"),
        ([8, 8, 0, 100, 1], "a matrix \\[100, 0\\]"),
        ([8, 8, 200, -100, 1], "a matrix \\[-100, 200\\]"),
        ([8, 8, 200, 2**62, 1], "at most 50000 fractals"),
        ([8, 8, 225, 100, 1], "has \\(8, 7\\) fractals, but the payload \\(7, 7\\)"),
        ([8, 8, 192, 100, 1], "has \\(6, 7\\) fractals"),
        ([8, 8, 100, 200, 1], "fractals, but the payload"),
        ([8, 8, 199, 100, 1], "beyond its last row or column"),
        ([8, 8, 200, 99, 1], "beyond its last row or column"),
    ],
)
def test_an_info_of_another_matrix_is_refused(info: list[float], message: str) -> None:
    parts = NZ().encode(matrix(100, 200))
    with pytest.raises(ValueError, match=message):
        NZ().decode({**parts, "info": np.array(info)})


def test_parts_that_are_missing_or_of_wide_elements_are_named() -> None:
    parts = NZ().encode(matrix(100, 200))
    with pytest.raises(ValueError, match=r"^lacks \.index, \.weight$"):
        NZ().decode({"info": parts["info"]})
    for name in ("weight", "index"):
        with pytest.raises(ValueError, match=rf"^{name}: elements of int32"):
            NZ().decode({**parts, name: parts[name].astype(np.int32)})
    with pytest.raises(ValueError, match="threads=-1"):
        NZ(-1)
