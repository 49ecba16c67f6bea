"""Numbers wider than a byte come back bit for bit, whatever their bits mean, and damage is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slimrun import compress

DTYPES = (np.float16, np.float32, np.float64, np.int32, np.int64)
WEIGHTS = np.random.default_rng(0).normal(0, 0.02, size=(300, 700)).astype(np.float32)


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@settings(max_examples=150)
@given(
    st.sampled_from(DTYPES),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=40),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3, 64]),
)
def test_any_bits_of_any_shape(dtype: type, shape: tuple[int, ...], seed: int, kinds: int) -> None:
    # few kinds of number at once, among them NaN with payloads, infinities, subnormals and -0
    rng = np.random.default_rng(seed)
    width = np.dtype(dtype).itemsize
    table = rng.integers(0, 256, size=(kinds, width), dtype=np.uint8).view(dtype)[:, 0]
    array = table[rng.integers(0, kinds, size=shape)].reshape(shape)
    again = compress.decode(compress.encode(array, tile_size=4096))
    assert (again.dtype, again.shape, bits(again)) == (array.dtype, array.shape, bits(array))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_tensors_are_filled_in_place(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(WEIGHTS).to(dtype)
    out = torch.empty_like(tensor)
    assert compress.decode(compress.encode(tensor), out=out) is out
    assert torch.equal(out.view(torch.uint8), tensor.view(torch.uint8))


def test_bfloat16_without_a_tensor_comes_as_bits() -> None:
    tensor = torch.from_numpy(WEIGHTS).bfloat16()
    decoded = compress.decode(compress.encode(tensor))
    assert decoded.dtype == np.uint16
    assert bits(decoded) == bits(tensor.view(torch.int16).numpy())


@pytest.mark.parametrize(
    ("tensor", "share"),
    [
        (torch.from_numpy(WEIGHTS).bfloat16(), 0.68),
        (torch.from_numpy(WEIGHTS).half().float(), 0.44),
        (torch.from_numpy(WEIGHTS).bfloat16().float(), 0.38),
        (torch.from_numpy(WEIGHTS), 0.85),
    ],
)
def test_trained_weights_take_their_exponents_and_their_noise(tensor: torch.Tensor, share: float) -> None:
    assert len(compress.encode(tensor)) < share * tensor.nbytes


def test_noise_takes_its_own_size_and_the_headers() -> None:
    noise = np.random.default_rng(1).integers(0, 256, size=4 * 300_000, dtype=np.uint8).view(np.float32)
    tiles = -(-noise.size // compress.TILE_SIZE)
    assert len(compress.encode(noise)) <= noise.nbytes + 48 + 4 * (168 + 12 * tiles)


@pytest.mark.parametrize("tile", [0, 2, 51])
def test_a_tile_alone(tile: int) -> None:
    packed = compress.encode(WEIGHTS, tile_size=4096)
    expected = WEIGHTS.ravel()[tile * 4096 : (tile + 1) * 4096]
    assert bits(compress.decode_tile(packed, tile)) == bits(expected)
    with pytest.raises(ValueError, match="tile 52"):
        compress.decode_tile(packed, 52)


SMALL = WEIGHTS[:20, :100].astype(np.float16)
PACKED = compress.encode(SMALL, tile_size=4096)


def test_truncation_at_every_byte() -> None:
    for size in range(len(PACKED)):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            compress.decode(PACKED[:size])
    with pytest.raises(ValueError, match="longer than its planes"):
        compress.decode(PACKED + b"\0")


@settings(max_examples=300)
@given(st.integers(0, len(PACKED) - 1), st.integers(1, 255))
def test_any_single_byte(at: int, flip: int) -> None:
    packed = bytearray(PACKED)
    packed[at] ^= flip
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        compress.decode(packed)


def test_out_must_fit() -> None:
    with pytest.raises(TypeError, match="out has dtype float32, expected float16"):
        compress.decode(PACKED, out=np.empty(SMALL.shape, np.float32))
    with pytest.raises(ValueError, match="shape"):
        compress.decode(PACKED, out=np.empty((100, 20), np.float16))
    with pytest.raises(ValueError, match="shape"):
        compress.decode(PACKED, out=np.empty((20, 200), np.float16)[:, ::2])


def test_a_claim_beyond_max_bytes_is_refused() -> None:
    zeros = compress.encode(np.zeros(1 << 22, np.float32))
    assert len(zeros) < 8192
    with pytest.raises(ValueError, match="claims 16777216 bytes"):
        compress.decode(zeros, max_bytes=1 << 20)


def test_integers_of_other_widths_are_refused() -> None:
    with pytest.raises(TypeError, match="int16"):
        compress.encode(np.zeros(3, np.int16))
