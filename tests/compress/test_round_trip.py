"""What goes in comes out: shapes, kinds of data, tiles, threads, sections, and the arguments' own errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slimrun.ops import compress
from slimrun.ops.compress.base import Arena
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native

from .arrays import KINDS, Int8Array, pattern, sparse_quantized

SHAPES = hnp.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=5)


@settings(max_examples=200)
@given(hnp.arrays(np.int8, SHAPES))
def test_any_shape_survives(array: Int8Array) -> None:
    decoded = compress.decode(compress.encode(array))
    assert decoded.shape == array.shape
    assert decoded.dtype == np.int8
    assert np.array_equal(decoded, array)


@settings(max_examples=150)
@given(st.integers(0, 20_000), st.floats(0.1, 200), st.integers(0, 255), st.integers(0, 2**32))
def test_any_distribution_survives(n: int, scale: float, shift: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    array = (np.round(generator.standard_normal(n) * scale) + shift).astype(np.int64).astype(np.int8)
    assert np.array_equal(compress.decode(compress.encode(array, tile_size=4096)), array)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 4095, 4096, 4097, 40_000])
def test_every_path_at_every_edge(kind: str, n: int) -> None:
    array = KINDS[kind](n)
    packed = compress.encode(array, tile_size=4096)
    assert np.array_equal(compress.decode(packed), array)
    assert len(packed) <= n + 112 + 12 * -(-n // 4096)


def test_the_paths_are_what_their_names_say() -> None:
    def tile_kinds(array: Int8Array) -> set[int]:
        sections = compress.encode_sections(array, tile_size=4096)
        tiles = compress.inspect(sections).n_tiles
        return set(sections.index[64 : 64 + 8 * tiles].tobytes()[7::8])

    rans, raw, constant = 0, 1, 2
    assert tile_kinds(KINDS["sparse_quantized"](40_000)) == {rans}
    assert tile_kinds(KINDS["noise"](40_000)) == {raw}
    assert tile_kinds(KINDS["constant_then_noise"](40_960)) == {raw, constant}
    assert compress.inspect(compress.encode(KINDS["w8"](40_000))).low_bits > 0


def test_a_tile_decodes_alone() -> None:
    array = KINDS["constant_then_noise"](50_000).reshape(100, 500)
    array[60:] = sparse_quantized(20_000).reshape(40, 500)
    packed = compress.encode(array, tile_size=4096)
    tiles = [compress.decode_tile(packed, i) for i in range(compress.inspect(packed).n_tiles)]
    assert [len(tile) for tile in tiles] == [4096] * 12 + [50_000 - 12 * 4096]
    assert np.array_equal(np.concatenate(tiles), array.ravel())
    for i in (-1, 13):
        with pytest.raises(ValueError, match=rf"^tile {i}: the container has 13 tiles$"):
            compress.decode_tile(packed, i)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_change_a_byte(kind: str) -> None:
    array = KINDS[kind](300_000)  # enough tiles for two workers and more
    packed = compress.encode(array, tile_size=4096, threads=1)
    for threads in (0, 2, 5, 100):
        assert compress.encode(array, tile_size=4096, threads=threads) == packed
        assert np.array_equal(compress.decode(packed, threads=threads), array)


def test_sections_are_views_of_the_container() -> None:
    array = pattern(10_000).reshape(50, 200)
    packed = np.frombuffer(compress.encode(array), np.uint8)
    sections = compress.split(packed)
    assert [section.dtype for section in sections] == [np.int64, np.int8, np.int8]
    assert all(np.shares_memory(section, packed) for section in sections)
    assert b"".join(section.tobytes() for section in sections) == packed.tobytes()
    again = compress.encode_sections(array)
    assert b"".join(section.tobytes() for section in again) == packed.tobytes()
    assert np.array_equal(compress.decode_sections(*sections), array)
    assert compress.inspect(sections) == compress.inspect(packed)


def test_a_container_describes_itself() -> None:
    array = sparse_quantized(200_000).reshape(400, 500)
    packed = compress.encode(array, tile_size=8192)
    info = compress.inspect(packed)
    assert (info.shape, info.tile_size, info.n_tiles, info.low_bits) == ((400, 500), 8192, 25, 0)
    assert (info.raw_bytes, info.packed_bytes) == (200_000, len(packed))
    assert info.ratio == 200_000 / len(packed)


def test_out_is_filled_and_checked() -> None:
    array = pattern(600).reshape(20, 30)
    packed = compress.encode(array)
    out = np.empty((20, 30), np.int8)
    assert compress.decode(packed, out) is out
    assert np.array_equal(out, array)
    frozen = np.empty((20, 30), np.int8)
    frozen.flags.writeable = False
    for wrong in (np.empty((30, 20), np.int8), np.empty((30, 20), np.int8).T, np.empty(600, np.int8), frozen):
        with pytest.raises(ValueError, match=r"^out: .*\(20, 30\)"):
            compress.decode(packed, wrong)
    with pytest.raises(TypeError, match="uint8"):
        compress.decode(packed, np.empty((20, 30), np.uint8))


def test_strided_arrays_and_any_buffer_are_accepted() -> None:
    array = pattern(3000).reshape(30, 100)[::2, ::-3]
    packed = compress.encode(array)
    for buffer in (packed, bytearray(packed), memoryview(packed), np.frombuffer(packed, np.int8)):
        assert np.array_equal(compress.decode(buffer), array)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "bool", "object"])
def test_another_dtype_is_named(dtype: str) -> None:
    takes_floats = [] if dtype == "float32" else [compress.encode]
    for function in (*takes_floats, compress.encode_sections, compress.entropy_bits):
        with pytest.raises(TypeError, match=dtype):
            function(np.zeros(4, dtype))


@pytest.mark.parametrize("tile_size", [-1, 0, 1, 2048, 5000, 2**21, 2**70])
def test_a_tile_size_out_of_range_is_refused(tile_size: int) -> None:
    with pytest.raises(ValueError, match=rf"tile_size = {tile_size}: "):
        compress.encode(pattern(10), tile_size=tile_size)


def test_other_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="threads = -1"):
        compress.encode(pattern(10), threads=-1)
    with pytest.raises(ValueError, match="threads = -1"):
        compress.decode(compress.encode(pattern(10)), threads=-1)
    with pytest.raises(ValueError, match="9 dimensions"):
        compress.encode(np.zeros((1,) * 9, np.int8))


def test_tensors_are_taken_as_the_memory_that_they_are() -> None:
    tensor = torch.from_numpy(sparse_quantized(70_000).reshape(100, 700))
    packed = compress.encode(tensor)
    assert packed == compress.encode(tensor.numpy())
    out = torch.zeros_like(tensor)
    assert compress.decode(torch.frombuffer(bytearray(packed), dtype=torch.uint8), out=out) is out
    assert torch.equal(out, tensor)


def test_a_mapped_file_is_decoded_where_it_lies(tmp_path: Path) -> None:
    array = sparse_quantized(100_000).reshape(50, 2000)
    (tmp_path / "coded").write_bytes(b"in front" + compress.encode(array))
    mapped = np.memmap(tmp_path / "coded", np.uint8, mode="r")[8:]
    out = np.empty_like(array)
    assert compress.decode(mapped, out=out) is out
    assert np.array_equal(out, array)
    assert all(np.shares_memory(section, mapped) for section in compress.split(mapped))


def test_small_parts_do_not_keep_the_payload() -> None:
    parts = Native().encode(np.zeros((64, 64), np.int8))
    assert parts["info"].base is None
    assert parts["index"].base is None


def test_weights_are_coded_while_more_are_added() -> None:
    weights = {str(n): sparse_quantized(64 * n).reshape(n, 64) for n in range(1, 40)}
    seen: list[tuple[int, int]] = []
    compressor = Compressor(Native(), lambda done, total: seen.append((done, total)))
    for name, weight in weights.items():
        compressor.add(name, weight)
    coded = compressor.finish()
    assert list(coded) == list(weights)
    assert seen == [(i + 1, 39) for i in range(39)]
    assert all(np.array_equal(Native().decode(coded[name]), weight) for name, weight in weights.items())
    whole = Compressor(Native()).run(weights)
    assert all(np.array_equal(whole[name][part], coded[name][part]) for name in coded for part in coded[name])


def test_a_weight_that_cannot_be_coded_ends_the_rest() -> None:
    weights = {"good": sparse_quantized(640).reshape(10, 64), "bad": np.zeros((1,) * 9, np.int8)}
    with pytest.raises(ValueError, match="9 dimensions"):
        Compressor(Native()).run(weights)


def test_arena_gives_arrays_of_their_own() -> None:
    arena = Arena()
    shapes = [(3, 7), (0, 5), (1000, 1000), (6000, 6000), (64,), (40 << 20,), (20 << 20,), (20 << 20,), (2, 2)]
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(arena, shapes))
    for i, array in enumerate(arrays):
        array[...] = i + 1
    for i, array in enumerate(arrays):
        assert array.shape == shapes[i]
        assert array.flags.c_contiguous
        assert (array == i + 1).all()
