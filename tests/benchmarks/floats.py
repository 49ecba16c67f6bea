"""Floating-point tensors against memcpy, zstd and zipnn: size and speed of one thread, in one run.

    python tests/benchmarks/floats.py [--rounds 5]

SmolLM2's embeddings (49152 x 576) and gaussian weights in each dtype. Sizes count everything. Speeds are GB of numbers
per second of CPU time, rounds interleaved over the codecs, medians. zipnn is measured where it is installed (its wheel
brings zstd of its own); zstd comes from the system's library.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from safetensors import safe_open

from slimrun import compress
from slimrun.ops.model import embedded
from slimrun.runner.display import print_table
from tests.benchmarks.peers import Codec, Zstd
from tests.conftest import cache_folder

EMBEDDINGS = "model.embed_tokens.weight"


def tensors() -> Iterator[tuple[str, torch.Tensor]]:
    """What is coded, by name."""
    weights = torch.randn(8192, 2048, generator=torch.Generator().manual_seed(0)) * 0.02
    yield "bfloat16", weights.bfloat16()
    yield "float16", weights.half()
    yield "float32 that was float16", weights.half().float()
    yield "float32", weights
    with safe_open(next(embedded.fetched(cache_folder()).glob("*.safetensors")), "pt") as file:
        yield "SmolLM2's embeddings, float32 of an 8-bit grid", file.get_tensor(EMBEDDINGS)


def codecs(tensor: torch.Tensor) -> Iterator[Codec]:
    """All of them; each takes the numbers' bits as an array."""

    def ours(packed: bytes, out: np.ndarray) -> None:
        compress.decode(packed, out=torch.from_numpy(out).view(tensor.dtype), threads=1)

    yield Codec(
        "memcpy", lambda bits: bits.copy(), lambda packed, out: np.copyto(out, packed), lambda bits: bits.nbytes
    )
    yield Codec("slimrun", lambda _: compress.encode(tensor, threads=1), ours)
    for level in (1, 9):
        zstd = Zstd(level, huffman=False)
        yield Codec(f"zstd {level}", zstd.encode, zstd.decode)
    try:
        from zipnn import ZipNN
    except ImportError:
        print("zipnn is not installed", file=sys.stderr)
        return
    zipped = ZipNN(bytearray_dtype=str(tensor.dtype).removeprefix("torch."), input_format="byte", threads=1)
    yield Codec("zipnn", lambda bits: zipped.compress(bits.tobytes()), lambda packed, out: zipped.decompress(packed))


def main() -> None:
    """Print a table a tensor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for name, tensor in tensors():
        bits = tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()]).numpy()
        rows = measure(list(codecs(tensor)), bits, rounds)
        print_table(f"{name}, {bits.nbytes / 1e6:.0f} MB", ["", "share of raw", "encode, GB/s", "decode, GB/s"], rows)


def measure(candidates: list[Codec], bits: np.ndarray, rounds: int) -> list[list[str]]:
    """The cells of each codec."""
    out = np.empty_like(bits)
    seconds: dict[str, list[tuple[float, float]]] = {codec.name: [] for codec in candidates}
    sizes = {}
    for _ in range(rounds):
        for codec in candidates:
            start = time.process_time()
            packed = codec.encode(bits)
            middle = time.process_time()
            codec.decode(packed, out)
            seconds[codec.name].append((middle - start, time.process_time() - middle))
            sizes[codec.name] = codec.size(packed)
    return [
        [
            codec.name,
            f"{sizes[codec.name] / bits.nbytes:.4f}",
            *(f"{bits.nbytes / statistics.median(times) / 1e9:.2f}" for times in zip(*seconds[codec.name])),
        ]
        for codec in candidates
    ]


if __name__ == "__main__":
    main()
