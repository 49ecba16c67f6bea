"""The codec against memcpy, zstd, lz4, zipnn and constriction on quantized weights: size and speed, in one run.

    python tests/benchmarks/codec.py [--rounds 5] [--tensors smollm2,llama] [--json FILE] [--png FILE]

Sizes count everything, against the tensor's order-0 entropy. Speeds are GB of int8 weights per second of the process's
CPU time (of wall time with 2 threads), rounds interleaved over the codecs, medians. zstd comes from the
system's library, with and without literals forced to Huffman codes; lz4, zipnn and constriction are measured where
they are installed (`pip install lz4 zipnn constriction`). Prints ratios of one run; never asserts a time. With zstd 19
the large tensors take half an hour.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slimrun.ops import _native, compress
from slimrun.ops.framework.base import Device
from slimrun.ops.framework.pytorch import PyTorch
from slimrun.ops.model import embedded
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.runner.display import print_table
from tests.benchmarks.peers import Codec, codecs

LLAMA_SHAPES = ((4096, 4096), (11008, 4096))
FRACTIONS = (0.01, 0.03, 0.1)
FEATURES = ("avx2", "avx512f", "avx512_vbmi2", "avx512_vnni", "gfni", "asimd")


def tensors(which: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, int8 matrix): real ones of SmolLM2 by three methods, and synthetic ones of LLaMA-7B's shapes."""
    if "smollm2" in which:
        cache = Path("~/.cache/slimrun").expanduser()
        model = Pretrained("smollm2", str(embedded.fetched(cache)))
        module: Any = PyTorch().load(model.open(cache), Device("cpu", "cpu")).module
        for method, quantizer in (("w8a8s", W8A8S()), ("lowbit", Lowbit()), ("w8a8", W8A8())):
            for layer in ("model.layers.10.mlp.gate_proj", "model.layers.20.mlp.down_proj"):
                yield f"{layer.removeprefix('model.')} {method}", _values(quantizer, module.get_submodule(layer).weight)
    if "llama" in which:
        generator = torch.Generator().manual_seed(0)
        for rows, columns in LLAMA_SHAPES:
            # rows and columns of unequal scale, half of the rows from Student's t with 7 degrees of freedom
            weight = torch.randn(rows, columns, generator=generator)
            heavy = weight[: rows // 2]
            chi_square = sum(torch.randn(heavy.shape, generator=generator).square_() for _ in range(7))
            heavy *= (7 / chi_square) ** 0.5
            weight *= (0.3 * torch.randn(rows, 1, generator=generator)).exp()
            weight *= (0.1 * torch.randn(1, columns, generator=generator)).exp()
            for fraction in FRACTIONS:
                for per_channel in (True, False):
                    grid = "row" if per_channel else "tensor"
                    quantizer = W8A8S(fraction=fraction, per_channel=per_channel)
                    yield f"{rows}x{columns} fraction {fraction} per {grid}", _values(quantizer, weight)
            yield f"{rows}x{columns} grids by row", _grids_by_row(weight)


def _grids_by_row(weight: torch.Tensor) -> np.ndarray:
    """Each row's own coarse grid (1 % beyond 7 steps), written on the scale of its largest weight."""
    step = weight.abs().kthvalue(int(0.99 * weight.shape[1]), dim=1, keepdim=True).values / 7
    scale = weight.abs().amax(1, keepdim=True) / 127
    return ((weight / step).round() * step / scale).round().clamp(-127, 127).to(torch.int8).numpy()


def measure(array: np.ndarray, candidates: list[Codec], rounds: int) -> dict[str, dict[str, float]]:
    """name -> bytes, and GB/s of both ways; what does not come back the same is an error."""
    packed: dict[str, Any] = {}
    out = np.empty_like(array)
    times: dict[str, dict[str, list[float]]] = {codec.name: {"encode": [], "decode": []} for codec in candidates}
    for _ in range(rounds + 1):
        for codec in candidates:
            taken = times[codec.name]
            # the process's time: some peers start threads of their own
            clock = time.perf_counter if "2 threads" in codec.name else time.process_time
            # a codec slower than 0.05 GB/s encodes once: nobody's choice, and hours of waiting
            if not taken["encode"] or taken["encode"][0] < array.nbytes / 5e7:
                start = clock()
                packed[codec.name] = codec.encode(array)
                taken["encode"].append(clock() - start)
            start = clock()
            codec.decode(packed[codec.name], out)
            taken["decode"].append(clock() - start)
    for taken in times.values():  # the first round touches fresh memory
        for way, seconds in taken.items():
            taken[way] = seconds[1:] or seconds
    for codec in candidates:
        out.fill(0)
        returned = codec.decode(packed[codec.name], out)
        same = out if returned is None or returned is out else np.frombuffer(bytes(_as_bytes(returned)), np.int8)
        if not np.array_equal(same.reshape(-1), array.reshape(-1)):
            raise AssertionError(f"{codec.name} does not give back what it was given")
    return {
        codec.name: {
            "bytes": codec.size(packed[codec.name]) if codec.name != "memcpy" else array.nbytes,
            **{f"{way}_gbs": array.nbytes / statistics.median(seconds) / 1e9 for way, seconds in taken.items()},
        }
        for codec, taken in zip(candidates, times.values())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tensors", default="smollm2,llama")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    arguments = parser.parse_args()
    results = {}
    for name, array in tensors(set(arguments.tensors.split(","))):
        by_codec = measure(array, codecs(), arguments.rounds)
        entropy = compress.entropy_bits(array)
        results[name] = {"entropy_bits": entropy, "weights": array.size, "codecs": by_codec}
        report(name, array.size, entropy, by_codec)
    print(f"processor: {' '.join(sorted(_features()))}; slimrun used {_native.simd()}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"features": sorted(_features()), "tensors": results}, indent=1) + "\n")
    if arguments.png:
        draw(arguments.png, results)


def report(name: str, weights: int, entropy: float, by_codec: dict[str, dict[str, float]]) -> None:
    """One table a tensor; speeds also against memcpy and against the smallest zstd."""
    zstd = min((codec for codec in by_codec if codec.startswith("zstd")), key=lambda codec: by_codec[codec]["bytes"])
    rows = []
    for codec, result in by_codec.items():
        bits = 8 * result["bytes"] / weights
        rows.append(
            [
                codec + (" (smallest zstd)" if codec == zstd else ""),
                f"{bits:.3f}",
                f"{bits / entropy - 1:+.2%}",
                f"{result['encode_gbs']:.3f}",
                f"{result['decode_gbs']:.3f}",
                f"{result['decode_gbs'] / by_codec['memcpy']['decode_gbs']:.3f}",
                f"{result['encode_gbs'] / by_codec[zstd]['encode_gbs']:.2f}",
                f"{result['decode_gbs'] / by_codec[zstd]['decode_gbs']:.2f}",
            ]
        )
    columns = ["codec", "bits", "over entropy", "encode GB/s", "decode GB/s", "decode/memcpy", "encode/zstd"]
    print_table(f"{name}: {weights:,} weights, {entropy:.3f} bits", [*columns, "decode/zstd"], rows)


def draw(path: Path, results: dict[str, Any]) -> None:
    """Size against decoding speed, the last tensor."""
    from matplotlib import pyplot

    name, result = list(results.items())[-1]
    figure, axes = pyplot.subplots(figsize=(9, 6))
    for number, (codec, values) in enumerate(result["codecs"].items()):
        bits = 8 * values["bytes"] / result["weights"]
        axes.plot(values["decode_gbs"], bits, "os^vD*"[number % 6], label=codec)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    axes.axhline(result["entropy_bits"], linestyle=":", color="gray")
    axes.set(xscale="log", xlabel="decode, GB/s", ylabel="bits a weight (dotted: order-0 entropy)", title=name)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _values(quantizer: Quantizer, weight: torch.Tensor) -> np.ndarray:
    return quantizer.quantize_weight(weight).values.numpy()


def _as_bytes(value: Any) -> bytes:
    return (
        value.astype(np.uint8).tobytes() if isinstance(value, np.ndarray) and value.dtype != np.int8 else bytes(value)
    )


def _features() -> set[str]:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return {word for word in text.split() if word in FEATURES}


if __name__ == "__main__":
    main()
