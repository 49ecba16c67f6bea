"""The compiled codec of ops/csrc: arrays must be C-contiguous; malformed input raises ValueError."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

VERSION: Final[int]
NZ_VERSION: Final[int]

def encode_bound(values: NDArray[np.int8], tile_size: int) -> int: ...
def encode_into(values: NDArray[np.int8], out: NDArray[np.uint8], tile_size: int, threads: int) -> int: ...
def section_sizes(container: NDArray[Any]) -> tuple[int, int, int]: ...
def simd() -> str: ...

class Container:
    def __init__(self, info: NDArray[Any], index: NDArray[Any], payload: NDArray[Any]) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def tile_size(self) -> int: ...
    @property
    def n_tiles(self) -> int: ...
    @property
    def low_bits(self) -> int: ...
    @property
    def row_classes(self) -> int: ...
    @property
    def column_classes(self) -> int: ...
    @property
    def levels(self) -> bool: ...
    def tiles(self) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]: ...
    def decode_into(self, out: NDArray[np.int8], threads: int) -> None: ...
    def decode_tile(self, tile: int) -> NDArray[np.int8]: ...

def split_into(values: NDArray[Any], planes: NDArray[np.int8]) -> None: ...
def decode_numbers_into(planes: list[Container], values: NDArray[Any], threads: int) -> None: ...
def merge_into(planes: NDArray[np.int8], values: NDArray[Any]) -> None: ...
def nz_sizes(fractals: NDArray[np.int8]) -> tuple[int, int]: ...
def nz_encode_into(
    fractals: NDArray[np.int8], payload: NDArray[np.int8], index: NDArray[np.int8], threads: int
) -> int: ...
def nz_inspect(payload: NDArray[Any], index: NDArray[Any]) -> tuple[int, int]: ...
def nz_decode_into(payload: NDArray[Any], index: NDArray[Any], out: NDArray[np.int8], threads: int) -> None: ...
def entropy_bits(values: NDArray[Any]) -> float: ...
def crc32c(data: NDArray[Any], portable: bool = False) -> int: ...
def quantize_into(x: NDArray[np.float32], scale: float, offset: int, out: NDArray[np.int8], threads: int) -> None: ...
def dequantize_into(
    acc: NDArray[np.int32],
    bias: NDArray[np.int32],
    scale: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def multiply_into(
    x: NDArray[np.int8], w: NDArray[np.int8], out: NDArray[np.int32], threads: int, portable: bool = False
) -> None: ...
def static_linear_into(
    x: NDArray[np.float32],
    scale: float,
    offset: int,
    w: NDArray[np.int8],
    bias: NDArray[np.int32],
    steps: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def dynamic_linear_into(
    x: NDArray[np.float32],
    w: NDArray[np.int8],
    steps: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def multiplies_fast() -> bool: ...
def feedback_into(
    w: NDArray[np.float32],
    factor: NDArray[np.float32],
    step: NDArray[np.float32],
    price: NDArray[np.float32],
    row_price: NDArray[np.float32],
    bits: NDArray[np.float32],
    limit: int,
    q: NDArray[np.int8],
    e: NDArray[np.float32],
    threads: int,
) -> None: ...
def in_order_into(
    w: NDArray[np.float32],
    order: NDArray[np.int32],
    step: NDArray[np.float32],
    limit: int,
    exact: NDArray[np.float32],
    plain: NDArray[np.int8],
    missed: NDArray[np.float32],
    threads: int,
) -> None: ...
def out_of_order_into(
    fed: NDArray[np.int8],
    plain: NDArray[np.int8],
    takes: NDArray[np.bool_],
    order: NDArray[np.int32],
    q: NDArray[np.int8],
    threads: int,
) -> None: ...
def code_bits_into(q: NDArray[np.int8], bits: NDArray[np.float32], sums: NDArray[np.float32], threads: int) -> None: ...
def extremes_into(
    weights: NDArray[Any],
    bfloat16: bool,
    threshold: float,
    normal: NDArray[np.float32],
    largest: NDArray[np.float32],
    threads: int,
) -> None: ...
def select_magnitude(weights: NDArray[Any], bfloat16: bool, count: int, guess: float, threads: int) -> float: ...
def round_into(
    weights: NDArray[Any],
    bfloat16: bool,
    steps: NDArray[np.float32],
    low: int,
    high: int,
    out: NDArray[np.int8],
    threads: int,
) -> None: ...
def errors_into(
    weights: NDArray[Any],
    bfloat16: bool,
    steps: NDArray[np.float32],
    values: NDArray[np.int8],
    share: float,
    noise: NDArray[np.float64],
    signal: NDArray[np.float64],
    cut: NDArray[np.uint32],
    threads: int,
) -> None: ...
def row_sums_into(values: NDArray[np.int8], sums: NDArray[np.int32], threads: int) -> None: ...
def grid_errors(
    centers: NDArray[np.float64],
    counts: NDArray[np.float64],
    scales: NDArray[np.float64],
    offsets: NDArray[np.float64],
    errors: NDArray[np.float64],
) -> None: ...
