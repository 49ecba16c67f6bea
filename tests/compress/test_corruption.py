"""A damaged container raises ValueError with one line: it never crashes and never decodes to wrong data."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrun.ops import _native, compress

from .arrays import Int8Array, constant_then_noise, noise, sparse_quantized, w8, wide_tail


def crc32c(data: bytes) -> int:
    """Bit by bit, to seal containers that are wrong on purpose."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sealed(packed: bytes) -> bytes:
    """The same container with the checksum of info and index made right."""
    index_end = len(packed) - struct.unpack_from("<Q", packed, 32)[0]
    checksum = crc32c(packed[:12] + packed[16:index_end])
    return packed[:12] + struct.pack("<I", checksum) + packed[16:]


def changed(packed: bytes, at: int, field: bytes) -> bytes:
    return packed[:at] + field + packed[at + len(field) :]


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


ARRAYS: dict[str, Int8Array] = {
    "sparse_quantized": sparse_quantized(9000).reshape(90, 100),
    "wide_tail": wide_tail(9000),
    "w8": w8(6000),
    "constant_then_noise": constant_then_noise(10_000),
}
PACKED = {name: compress.encode(array, tile_size=4096) for name, array in ARRAYS.items()}


def test_crc32c_has_its_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert sealed(PACKED["wide_tail"]) == PACKED["wide_tail"]


@pytest.mark.parametrize("portable", [False, True])
def test_both_ways_to_a_checksum_agree(portable: bool) -> None:
    data = noise(300).view(np.uint8)
    for start in range(8):
        for size in (0, 1, 7, 8, 9, 64, 255):
            part = data[start : start + size]
            assert _native.crc32c(part, portable) == crc32c(part.tobytes())


def test_truncation_at_every_byte() -> None:
    packed = compress.encode(sparse_quantized(1000))
    assert len(packed) < 1000
    for size in range(len(packed)):
        with pytest.raises(ValueError, match=r"^(info|container): "):
            compress.decode(packed[:size])
    with pytest.raises(ValueError, match="size"):
        compress.decode(packed + b"\0")


@settings(max_examples=500)
@given(st.sampled_from(sorted(PACKED)), st.integers(0), st.integers(1, 255))
def test_any_single_byte(name: str, at: int, flip: int) -> None:
    packed = bytearray(PACKED[name])
    packed[at % len(packed)] ^= flip
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        compress.decode(packed)


def test_every_byte_of_the_header_and_the_index() -> None:
    packed = PACKED["wide_tail"]
    for at in range(len(packed) - compress.split(packed).payload.size):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            compress.decode(changed(packed, at, bytes([packed[at] ^ 0x10])))


@settings(max_examples=500)
@given(
    st.sampled_from(sorted(PACKED)),
    st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=2, max_size=40),
    st.booleans(),
)
def test_many_bytes_never_decode_to_wrong_data(name: str, writes: list[tuple[int, int]], burst: bool) -> None:
    packed = bytearray(PACKED[name])
    for i, (at, byte) in enumerate(writes):
        packed[(writes[0][0] + i if burst else at) % len(packed)] = byte
    try:
        decoded = compress.decode(packed)
    except ValueError:
        return
    assert np.array_equal(decoded, ARRAYS[name])


@pytest.mark.parametrize(
    ("at", "field", "message"),
    [
        (0, b"GGUF", "not a slimrun container"),
        (4, b"\2", "version is 2, expected 1"),
        (5, b"\t", "9 dimensions"),
        (6, b"\1", "row or column classes of an array that has no rows"),
        (6, b"\x40", "layout 64 of a later version"),
        (7, b"\b", "low_bits 8"),
        (8, struct.pack("<I", 4097), "tile_size = 4097"),
        (16, u64(9001), "numel is 9001, expected 9000"),
        (24, u64(2**63), "index bytes"),
        (32, u64(2**64 - 1), "payload of"),
        (40, u64(2**63), "2\\^48 elements or more"),
        (56, bytes([1] * 4), "twice in a table"),
        (88, bytes([0]), "frequencies sum to"),
        (104, bytes([128]), "a frequency is above 127"),
        (120, u64(1), "tile 0: does not begin where"),
        (127, b"\7", "tile 0: unknown kind"),
        (126, b"\7", "tile 0: a value that only a constant"),
        (120, u64(2 << 56), "tile 0: a constant tile with packed bytes"),
        (120, u64(1 << 56), "tile 0: a raw tile of another size"),
        (128, u64(5000), "tile 0: more packed bytes|tile 0: checksum"),
        (128, u64(2**48 - 1), "tile 0: more packed bytes"),
        (144, b"\0\0\0\0", "tile 0: checksum mismatch"),
        (148, b"\0\0\0\0", "tile 1: checksum mismatch"),
    ],
)
def test_a_sealed_lie_is_named(at: int, field: bytes, message: str) -> None:
    lie = sealed_if_possible(changed(PACKED["sparse_quantized"], at, field))
    with pytest.raises(ValueError, match=message):
        compress.decode(lie)


def sealed_if_possible(packed: bytes) -> bytes:
    return packed if struct.unpack_from("<Q", packed, 32)[0] > len(packed) else sealed(packed)


def test_a_hostile_shape_allocates_nothing() -> None:
    """A terabyte claimed by 52 bytes of info: refused by arithmetic, whatever the checksums say."""
    for shape in ((2**40,), (2**47,), (2**62, 2**62), (2**32, 2**32, 2**32)):
        numel = int(np.prod([float(side) for side in shape])) % 2**64
        info = struct.pack(f"<4sBBBBIIQQQ{len(shape)}Q", b"SLRN", 1, len(shape), 0, 0, 65536, 0, numel, 76, 0, *shape)
        with pytest.raises(ValueError, match=r"^(info|shape): "):
            compress.decode(info + bytes(76))


def test_damage_is_found_in_the_lowest_tile_first() -> None:
    packed = bytearray(compress.encode(sparse_quantized(74 * 4096), tile_size=4096))  # two workers' share
    payload = len(packed) - compress.split(packed).payload.size
    packed[payload + 5] ^= 1
    packed[-5] ^= 1
    for threads in (1, 3):
        with pytest.raises(ValueError, match=r"^tile 0: checksum mismatch$"):
            compress.decode(packed, threads=threads)
    compress.decode_tile(packed, 1)
    with pytest.raises(ValueError, match=r"^tile 73: checksum mismatch$"):
        compress.decode_tile(packed, 73)


def test_sections_of_other_containers_do_not_mix() -> None:
    ours, theirs = (compress.split(PACKED[name]) for name in ("sparse_quantized", "wide_tail"))
    for mixed in (
        (theirs.info, ours.index, ours.payload),
        (ours.info, theirs.index, ours.payload),
        (ours.info, ours.index, theirs.payload),
        (ours.info, ours.index, ours.payload[:-1]),
        (ours.info[:3], ours.index, ours.payload),
    ):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            compress.decode_sections(*mixed)
