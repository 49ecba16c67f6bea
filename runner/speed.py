"""How fast this machine is at what a run does most, measured in seconds on random numbers of the model's shapes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import RawIOBase
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor, nn

from slimrun.ops import compress
from slimrun.ops.calibration.base import weight_error
from slimrun.ops.compress.base import Codec
from slimrun.ops.compress.native import Native
from slimrun.ops.format import products
from slimrun.ops.format.arithmetic import QuantizedWeight, activation_grid
from slimrun.ops.format.linear import FLOAT, Int8Linear, quantized_linear
from slimrun.ops.quant import feedback
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.rdoq import RDOQ

LEAST_SECONDS = 0.01  # of repeated work, so that the clock tells
ONCE_SECONDS = 0.3  # of work that is not worth repeating
SLICE, NUMBERS = 2**20, 2**23  # weights of which rounding and coding are measured, and numbers: more than caches hold
MOST_ROWS, MOST_TOKENS = 1024, 64  # of a linear, and of what it is given at once
READ_BYTES, BUFFER_BYTES, WRITTEN_BYTES, BLOCK_BYTES = 2**27, 2**20, 2**26, 2**24
FED = 2**22  # weights of which rounding with feedback is measured: factor, errors and rows are more than caches hold
LONG = 1024, 2048  # rows, and columns of a long product


def product(shape: tuple[int, int], tokens: int, dtype: torch.dtype, quant_type: str) -> float:
    """Seconds of a linear [n, k] of this format on so many tokens at once.

    Some of its rows are measured on one token and on MOST_TOKENS; a straight line leads from one to the other.
    """
    rows, columns = min(shape[0], MOST_ROWS), shape[1]
    one, most = (_product((rows, columns), count, dtype, quant_type) for count in (1, MOST_TOKENS))
    seconds = tokens / MOST_TOKENS * most
    if tokens < MOST_TOKENS:
        seconds = one + (most - one) * (tokens - 1) / (MOST_TOKENS - 1)
    return shape[0] / rows * seconds


@cache
def _product(shape: tuple[int, int], tokens: int, dtype: torch.dtype, quant_type: str) -> float:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, tokens, shape[1], generator=generator).to(dtype)
    if quant_type == FLOAT:
        weight = torch.full(shape, 0.02, dtype=dtype)
        return _seconds(lambda: products.linear(x, weight))
    values = torch.randint(-8, 9, (1, shape[1]), generator=generator, dtype=torch.int8).repeat(shape[0], 1)
    quantized = QuantizedWeight(values, torch.full((shape[0], 1), 0.01))
    linear: Any = quantized_linear(quant_type, quantized, None, dtype)
    if isinstance(linear, Int8Linear):
        linear.set_grid(quantized, activation_grid(-4.0, 4.0, linear.dtype))
    return _seconds(lambda: linear(x))


@cache
def operations(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a long product of two matrices, as they are taken in this dtype."""
    rows, columns = LONG
    x, weight = torch.ones(rows, columns, dtype=dtype), torch.ones(columns, columns, dtype=dtype)
    return 2 * rows * columns * columns / _seconds(lambda: nn.functional.linear(x, weight))


@cache
def elementwise() -> float:
    """Seconds a number of a product of two large arrays, number by number."""
    x, y, out = (torch.ones(2, SLICE) for _ in range(3))
    return _seconds(lambda: torch.mul(x, y, out=out)) / x.numel()


@cache
def converting() -> float:
    """Seconds a weight to bring int8 ones into the dtype of products."""
    values = torch.ones(2, SLICE, dtype=torch.int8)
    return _seconds(lambda: products.for_products(values)) / values.numel()


@cache
def factoring(columns: int) -> float:
    """Seconds a number of a second moment of so many columns to make its factor, beside operations at their speed."""
    moment = torch.eye(columns).add_(0.1)
    seconds = _seconds(lambda: feedback.importance(moment, torch.ones(1), RDOQ.damping))
    return max(0.0, seconds - columns**3 / operations(torch.float32)) / columns**2


@cache
def feeding_back(columns: int) -> float:
    """Seconds a weight to round rows of so many columns with error feedback, beside the products at their speed."""
    weight = _rows(columns, FED)
    known = feedback.importance(torch.eye(columns).add_(0.1), torch.ones(len(weight)), RDOQ.damping)

    def rounded() -> Tensor:
        steps = feedback.row_steps(known.slope, weight, 0.02)
        values = feedback.feedback(weight, steps, known, torch.full((256,), 8.0), RDOQ.price)
        return feedback.code_lengths(values)

    carried = 2 * len(weight) * columns**2 / operations(products.for_products(torch.zeros(1)).dtype)
    return max(0.0, _seconds(rounded) - carried) / weight.numel()


def rounding(quantizer: Quantizer, columns: int) -> float:
    """Seconds a weight to quantize it, and to see what that lost."""
    weight = _rows(columns)
    return _seconds(lambda: weight_error(weight, quantizer.quantize_weight(weight))) / weight.numel()


def coding(codec: Codec, quantizer: Quantizer, columns: int) -> tuple[float, float]:
    """Seconds a weight to code its integer, and to decode it."""
    values = quantizer.quantize_weight(_rows(columns)).values.numpy()
    parts = codec.encode(values)
    encoded = _seconds(lambda: codec.encode(values)) / values.size
    return encoded, _seconds(lambda: codec.decode(parts)) / values.size


def coding_numbers(codec: Codec, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds a byte to code floating-point numbers of this type, and to decode them; 0 where they stay as they are."""
    some = torch.randn(SLICE, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    numbers = some.repeat(NUMBERS // SLICE)
    if not isinstance(codec, Native) or (packed := codec.encode_numbers(numbers)) is None:
        return 0.0, 0.0
    encoded, decoded = _seconds(lambda: codec.encode_numbers(numbers)), _seconds(lambda: compress.decode(packed))
    return encoded / numbers.nbytes, decoded / numbers.nbytes


def reading(file: Path) -> float:
    """Seconds a byte to read a file, from the disk or from what the system keeps of it."""
    with file.open("rb", buffering=0) as stream:
        return _read(stream)


@cache
def disk(folder: Path) -> tuple[float, float]:
    """Seconds a byte until what is written to this folder's disk is there, and to read it; 0 where nobody may write."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    block = os.urandom(BLOCK_BYTES)
    with suppress(OSError), TemporaryFile(dir=existing, buffering=0) as stream:
        begin = time.perf_counter()
        for _ in range(WRITTEN_BYTES // BLOCK_BYTES):
            stream.write(block)
        os.fsync(stream.fileno())
        written = (time.perf_counter() - begin) / WRITTEN_BYTES
        stream.seek(0)
        return written, _read(stream)
    return 0.0, 0.0


def _read(stream: RawIOBase) -> float:
    buffer, size = bytearray(BUFFER_BYTES), 0  # a small one: memory that is new has to be cleared first
    begin = time.perf_counter()
    while size < READ_BYTES and (more := stream.readinto(buffer)):
        size += more
    return (time.perf_counter() - begin) / max(1, size)


def _rows(columns: int, weights: int = SLICE) -> Tensor:
    rows = max(1, weights // columns)
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).mul_(0.02)


@torch.inference_mode()
def _seconds(work: Callable[[], Any]) -> float:
    """The least of three times, each of so many calls that the clock tells."""
    begin = time.perf_counter()
    work()
    first = time.perf_counter() - begin
    if first > ONCE_SECONDS:
        return first
    calls, times = max(1, round(LEAST_SECONDS / max(first, 1e-6))), []
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        times.append((time.perf_counter() - begin) / calls)
    return min(times)
