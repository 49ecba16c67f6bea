"""Coding and loading a whole model against writing and loading its int8 weights, in one run.

    python tests/benchmarks/bundle.py [--rounds 9] [--folder FOLDER]

SmolLM2 as w8a8s. Coding is measured against a plain write of the same int8 bytes with fsync, both by wall time. Loads
start from a cold cache: each file's pages are dropped before with posix_fadvise(DONTNEED), and with
/proc/sys/vm/drop_caches where that may be written. What a virtual disk's host keeps is out of reach: where cold reads
run at several GB/s, that is what they are. Rounds alternate; prints medians and their ratios, never asserts a time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from slimrun.ops import bundle
from slimrun.ops.compress.base import Codec, Parts
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native
from slimrun.ops.compress.none import NoCompression
from slimrun.ops.framework.base import Device
from slimrun.ops.framework.pytorch import PyTorch
from slimrun.ops.model import embedded
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.quant.w8a8s import W8A8S

PAGE = 4096


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    weights = {name: weight.numpy() for name, weight in quantized().items()}
    total = sum(weight.nbytes for weight in weights.values())

    coding, writing, times = [], [], {"int8": list[float](), "coded": list[float]()}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        for _ in range(arguments.rounds):
            coding.append(seconds(lambda: Compressor(Native()).run(weights)))
            writing.append(seconds(lambda: write(folder / "plain", weights)))
        save(folder / "coded", Native(), Compressor(Native()).run(weights))
        save(folder / "int8", NoCompression(), Compressor(NoCompression()).run(weights))
        for _ in range(arguments.rounds):
            for kind, spent in times.items():
                drop_caches(folder / kind)
                spent.append(seconds(lambda kind=kind: touch(bundle.read(folder / kind))))
        sizes = {kind: bundle.size(folder / kind) for kind in times}

    print(f"{len(weights)} weights, {total / 1e6:.1f} MB as int8, {sizes['coded'] / sizes['int8']:.3f} of it coded")
    report("code / write with fsync", statistics.median(coding), statistics.median(writing), total)
    report("cold load, coded / int8", *(statistics.median(times[kind]) for kind in ("coded", "int8")), total)


def quantized() -> dict[str, torch.Tensor]:
    """The int8 weights of SmolLM2's linears."""
    cache = Path("~/.cache/slimrun").expanduser()
    model = PyTorch().load(Pretrained("smollm2", str(embedded.fetched(cache))).open(cache), Device("cpu", "cpu"))
    linears = {n: m for n, m in model.module.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    return {name: W8A8S().quantize_weight(linear.weight).values for name, linear in linears.items()}


def write(file: Path, weights: dict[str, Parts]) -> None:
    """The weights one after the other, on the disk when this returns."""
    with file.open("wb") as out:
        for weight in weights.values():
            out.write(weight)
        out.flush()
        os.fsync(out.fileno())
    file.unlink()


def save(folder: Path, codec: Codec, coded: dict[str, Parts]) -> None:
    """A bundle of the weights alone."""
    bundle.write(folder, {}, coded, "W8A8S", codec, lambda scratch: None)


def touch(loaded: bundle.Bundle) -> int:
    """Look at every page, because an int8 tensor of a mapped file has not been read before somebody does."""
    return sum(int(tensor.view(torch.uint8).view(-1)[::PAGE].sum()) for tensor in loaded.tensors.values())


def drop_caches(folder: Path) -> None:
    """Make the next read of the folder's files come from the disk."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


def seconds(work: Callable[[], object]) -> float:
    """Wall time, without freeing what comes out."""
    begin = time.perf_counter()
    result = work()
    spent = time.perf_counter() - begin
    del result
    return spent


def report(what: str, ours: float, other: float, total: int) -> None:
    """One line."""
    rates = f"{total / ours / 1e9:.2f} / {total / other / 1e9:.2f} GB/s of int8"
    print(f"{what}: {ours:.3f} s / {other:.3f} s = {ours / other:.2f}   ({rates})")


if __name__ == "__main__":
    main()
