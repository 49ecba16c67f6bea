"""One bit stream: every vector extension writes and reads the same bytes, and they are what the headers say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrun.ops import _native, compress

from . import reference
from .arrays import KINDS, MATRICES, Int8Array, grids_by_row, unequal_rows

EXTENSIONS = ("scalar", "avx2", "avx512", "neon")
ARRAYS = {**{kind: make(70_001) for kind, make in KINDS.items()}, **MATRICES}
PACKED = {name: compress.encode(array) for name, array in ARRAYS.items()}


@pytest.fixture(params=EXTENSIONS)
def extension(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of those that this processor has, in use."""
    monkeypatch.setenv("SLIMRUN_SIMD", request.param)
    try:
        assert _native.simd() == request.param
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)


def test_an_extension_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMRUN_SIMD", "sse5")
    with pytest.raises(ValueError, match=r"^SLIMRUN_SIMD=sse5: this processor has .*scalar$"):
        compress.decode(PACKED["w8"])
    with pytest.raises(ValueError, match=r"^SLIMRUN_SIMD=sse5: "):
        compress.encode(ARRAYS["w8"])
    monkeypatch.setenv("SLIMRUN_SIMD", "")
    assert _native.simd() in EXTENSIONS


def test_every_part_of_a_model_occurs() -> None:
    models = {name: compress.inspect(packed) for name, packed in PACKED.items()}
    assert models["unequal_rows"].row_classes > 1
    assert models["unequal_columns"].column_classes == 2
    assert models["unequal_rows_and_columns"].row_classes > 1
    assert models["unequal_rows_and_columns"].column_classes == 2
    assert models["grids_by_row"].levels
    assert models["large_low_bits"].low_bits > 0
    assert not models["sparse_quantized"].levels


@pytest.mark.parametrize("name", ARRAYS)
def test_the_same_bytes_both_ways(name: str, extension: str) -> None:
    assert compress.encode(ARRAYS[name]) == PACKED[name]
    assert np.array_equal(compress.decode(PACKED[name]), ARRAYS[name])


@settings(max_examples=60)
@given(st.integers(1, 9000), st.sampled_from(sorted(KINDS)), st.integers(0, 7))
def test_every_length(n: int, kind: str, shift: int) -> None:
    """Where the sequences end relative to 64 lanes and to the end of the memory differs with each length."""
    array = (KINDS[kind](n) << shift).astype(np.int8)
    with pytest.MonkeyPatch.context() as patch:
        packed = set()
        for name in EXTENSIONS[:3]:
            patch.setenv("SLIMRUN_SIMD", name)
            try:
                packed.add(compress.encode(array, tile_size=4096))
            except ValueError:
                continue
            assert np.array_equal(compress.decode(bytearray(next(iter(packed)))), array)
    assert len(packed) == 1


@pytest.mark.parametrize(
    "array",
    [
        *(KINDS[kind](4096 + 100) for kind in ("pattern", "sparse_quantized", "w8", "wide_tail")),
        KINDS["pattern"](63),
        KINDS["w8"](333),
        unequal_rows(100),
        grids_by_row(20, 320),
        np.zeros((0, 3), np.int8),
    ],
    ids=[
        "pattern",
        "sparse_quantized",
        "w8",
        "wide_tail",
        "no lane free",
        "few low bits",
        "classes",
        "levels",
        "empty",
    ],
)
def test_the_headers_say_how_to_decode(array: Int8Array) -> None:
    packed = compress.encode(array, tile_size=4096)
    assert np.array_equal(reference.decode(packed), array)


def test_the_headers_say_how_to_decode_two_classes_of_columns() -> None:
    """Small arrays get none: one tile of such an array."""
    tile = reference.decode(PACKED["unequal_columns"], only=3)
    assert np.array_equal(tile, ARRAYS["unequal_columns"].reshape(-1)[3 * 65536 : 4 * 65536])
