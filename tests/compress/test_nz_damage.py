"""Damaged matrices are refused, and never crash."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrun.ops import _native
from slimrun.ops.bundle.description import containers
from slimrun.ops.compress.cann import Cann
from slimrun.ops.compress.nz import NZ

from .test_nz import HEADER, changed, entries_of, mixed, sealed

WEIGHT = mixed(256, 768)
PARTS = NZ().encode(WEIGHT)


@settings(max_examples=400)
@given(st.sampled_from(["weight", "index"]), st.integers(0), st.integers(0, 7))
def test_any_single_bit(name: str, at: int, bit: int) -> None:
    at %= PARTS[name].size
    flipped = bytes([PARTS[name].view(np.uint8)[at] ^ 1 << bit])
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        NZ().decode(changed(PARTS, name, at, flipped))


def test_every_bit_of_header_and_index() -> None:
    parts = NZ(1).encode(WEIGHT[:, 600:])
    for name, size in (("weight", HEADER + 4), ("index", parts["index"].size)):
        for at in range(8 * size):
            flipped = bytes([parts[name].view(np.uint8)[at // 8] ^ 1 << at % 8])
            with pytest.raises(ValueError, match=r"^[^\n]+$"):
                NZ(1).decode(changed(parts, name, at // 8, flipped))


@settings(max_examples=200)
@given(st.sampled_from(["weight", "index"]), st.integers(0), st.booleans())
def test_any_other_size(name: str, size: int, longer: bool) -> None:
    part = PARTS[name]
    other = np.concatenate([part, part[: size % 100 + 1]]) if longer else part[: max(1, size % part.size)]
    if other.size != part.size:
        with pytest.raises(ValueError, match=r"^(payload|index): "):
            NZ().decode({**PARTS, name: other})


@settings(max_examples=300)
@given(
    st.sampled_from(["weight", "index"]),
    st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=2, max_size=40),
    st.booleans(),
)
def test_sealed_damage_never_crashes(name: str, writes: list[tuple[int, int]], front: bool) -> None:
    """With the header's checksum made right, everything behind it must stand on its own."""
    parts = PARTS
    for at, byte in writes:
        parts = changed(
            parts, name, at % (HEADER + 100 if front else PARTS[name].size) % PARTS[name].size, bytes([byte])
        )
    try:
        decoded = NZ().decode(sealed(parts))
    except ValueError:
        return
    assert decoded.shape == WEIGHT.shape


@pytest.mark.parametrize(
    ("name", "at", "field", "message"),
    [
        ("weight", 0, b"GGUF", "not a slimrun-nz container"),
        ("weight", 4, b"\2", "version is 2, expected 1"),
        ("weight", 5, b"\b", "low_bits 8"),
        ("weight", 6, b"\1", "flags 1 of a later version"),
        ("weight", 8, struct.pack("<I", 0), "k1 = 0 fractals: must be 1 to 50000"),
        ("weight", 8, struct.pack("<II", 50000, 50001), "n1 = 50001 fractals"),
        ("weight", 8, struct.pack("<II", 50000, 50000), "index: size is 48, expected 312500000"),
        ("weight", 8, struct.pack("<II", 2**32 - 1, 2**32 - 1), "k1 = 4294967295 fractals"),
        ("weight", 16, struct.pack("<I", 2**32 - 1), "payload: size is"),
        ("weight", 56, bytes([0]), "frequencies sum to"),
        ("weight", HEADER, b"\0\0\0\0", "tile 0: checksum mismatch"),
        ("index", 0, struct.pack("<I", HEADER + 1), "tile 0: does not begin where"),
        ("index", 4, struct.pack("<H", 2**15 + 1), "tile 0: more packed bytes than elements"),
        ("index", 6, b"\1", "tile 0: a value that only a constant tile has"),
        ("index", 7, b"\3", "tile 0: unknown kind"),
        ("index", 7, b"\2", "tile 0: a constant tile with packed bytes"),
        ("index", 7, b"\0", "tile 0: (a lane|the stream|bytes|more|too short)"),
        ("index", 4, struct.pack("<H", 100), "tile 1: does not begin where"),
        ("index", 38, b"\0\1", "tile 5: does not begin where"),
        ("index", 47, b"\2", "tile 5: a constant tile with packed bytes"),
        ("index", 44, struct.pack("<H", 2**15), "tile 5: goes on behind the end"),
        ("index", 44, struct.pack("<H", 100), "payload: bytes used by tiles"),
    ],
)
def test_a_sealed_lie_is_named(name: str, at: int, field: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NZ().decode(sealed(changed(PARTS, name, at, field)))


def test_the_lowest_damaged_tile_is_named() -> None:
    payload = bytearray(PARTS["weight"].tobytes())
    payload[-5] ^= 1
    payload[entries_of(PARTS["index"])[1][0] + 9] ^= 1
    for threads in (1, 3):
        with pytest.raises(ValueError, match=r"^tile 1: checksum mismatch$"):
            NZ(threads).decode({**PARTS, "weight": np.frombuffer(payload, np.int8)})


def test_parts_of_other_matrices_do_not_mix() -> None:
    other = NZ().encode(mixed(256, 768)[::-1])
    for name in ("weight", "index"):
        with pytest.raises(ValueError, match=r"^(payload|index)"):
            NZ().decode({**PARTS, name: other[name]})


def test_arrays_of_other_shapes_do_not_reach_the_coder() -> None:
    fractals = np.zeros((2, 2, 16, 32), np.int8)
    payload, index = np.empty(_native.nz_sizes(fractals)[0], np.int8), np.empty(8, np.int8)
    for wrong in (fractals[0], fractals.reshape(2, 2, 32, 16), fractals.astype(np.int16), fractals[:0]):
        with pytest.raises(ValueError, match="fractals"):
            _native.nz_sizes(wrong)  # type: ignore[arg-type]
    for short in ((payload[1:], index), (payload, index[1:])):
        with pytest.raises(ValueError, match="out: "):
            _native.nz_encode_into(fractals, *short, 1)
    with pytest.raises(ValueError, match="out: "):
        _native.nz_decode_into(PARTS["weight"], PARTS["index"], fractals, 1)


def test_a_bundle_finds_its_codec_by_the_name_of_the_container() -> None:
    known = containers()
    assert known["slimrun-nz", 1] is NZ
    assert Cann not in known.values()
