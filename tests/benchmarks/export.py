"""Exports of a bundle of LLaMA2-7B's shape with fewer layers: seconds beside those of a copy, and peak memory.

    python -m tests.benchmarks.export [--layers 4] [--to gguf ...] [--rounds 2] [--folder FOLDER]

Integers are random, peaked as w8a8s leaves them, with an input grid a linear. Each export is a process of its own that
checks what it wrote. The copy is of the files that it left: read 16 MiB at a time, written, and synced to the disk as
an export's are. Export and copy come by turns, the least of the rounds counts for each. CPU seconds (of all threads,
user and system) move less than others with what else runs. Those of an export begin with the imports of its libraries,
which take the same whatever the model's size, and are told apart.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from multiprocessing import Process
from pathlib import Path
from resource import struct_rusage

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch import Tensor
from transformers import LlamaConfig

from slimrun.ops import bundle
from slimrun.ops.compress.base import Parts
from slimrun.ops.compress.native import Native
from slimrun.ops.format.arithmetic import ActivationGrid, QuantizedWeight
from slimrun.ops.format.linear import Int8Linear
from slimrun.ops.model.skeleton import skeleton
from slimrun.ops.model.tokenizer import byte_tokenizer
from tests.benchmarks.large_model import copy_seconds

TARGETS = ("compressed-tensors", "gguf", "vllm-ascend", "vllm-ascend-310p", "mindie")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--to", nargs="+", default=TARGETS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        maker = Process(target=make, args=(folder / "artifact", arguments.layers))  # its memory is none of an export's
        maker.start()
        maker.join()
        print(f"{arguments.layers} layers of LLaMA2-7B's shape, W8A8S")
        print(f"{cpu_seconds(used_by('--help')):.1f} CPU s of every export import its libraries")
        print("| target | GB | wall s | of a copy | ratio | CPU s | of a copy | ratio | peak, GiB |")
        print("|---|---|---|---|---|---|---|---|---|")
        for target in arguments.to:
            report(folder / "artifact", folder / "export", target, arguments.rounds)


def make(folder: Path, layers: int) -> None:
    """Write the bundle."""
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32000, max_position_embeddings=4096, rms_norm_eps=1e-5, dtype="float16",
        architectures=["LlamaForCausalLM"], pad_token_id=None,
    )  # fmt: skip
    tokenizer = byte_tokenizer()
    cut = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = cut  # gguf has a name for it
    generator, codec = torch.Generator().manual_seed(0), Native()
    tensors: dict[str, Tensor] = {}
    coded: dict[str, Parts] = {}
    model = skeleton(config)
    for key, parameter in model.named_parameters():
        name = key.removesuffix(".weight")
        if not name.endswith("_proj"):
            tensors[key] = torch.randn(parameter.shape, generator=generator).mul_(0.02).half()
            continue
        values = torch.randn(parameter.shape, generator=generator).mul_(1.5).round_().to(torch.int8)
        linear = Int8Linear(values, None, torch.float16)
        linear.set_grid(QuantizedWeight(values, torch.full((len(values), 1), 1e-3)), ActivationGrid(2.0**-5, -3))
        coded[name] = codec.encode(values.numpy())
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in linear.stored().items() if suffix != "weight"}

    def describe(place: Path) -> None:
        config.save_pretrained(place)
        tokenizer.save_pretrained(place)

    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    bundle.write(folder, tensors, coded, "W8A8S", codec, describe, float_model=shapes)


def report(artifact: Path, folder: Path, target: str, rounds: int) -> None:
    """A row of the table."""
    exports, copies, peak, size = [], [], 0, 0
    for _ in range(rounds):
        begin = time.monotonic()
        used = used_by(str(artifact), str(folder), "--to", target)
        exports.append((time.monotonic() - begin, cpu_seconds(used)))
        peak = max(peak, used.ru_maxrss)
        size = sum(file.stat().st_size for file in folder.iterdir())
        before = time.process_time()
        seconds = copy_seconds(folder, folder.with_name("copy"))
        copies.append((seconds, time.process_time() - before))
        shutil.rmtree(folder)
    (wall, cpu), (copy_wall, copy_cpu) = (map(min, zip(*times)) for times in (exports, copies))
    print(
        f"| {target} | {size / 1e9:.2f} | {wall:.1f} | {copy_wall:.1f} | {wall / copy_wall:.1f} "
        f"| {cpu:.1f} | {copy_cpu:.1f} | {cpu / copy_cpu:.1f} | {peak / 2**20:.2f} |",
        flush=True,
    )


def used_by(*arguments: str) -> struct_rusage:
    """What `slimrun-export` with these arguments used."""
    program = str(Path(sys.executable).with_name("slimrun-export"))
    child = os.posix_spawn(program, [program, *arguments], os.environ, file_actions=[
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ])  # fmt: skip
    _, status, used = os.wait4(child, 0)
    if status:
        sys.exit(f"slimrun-export {' '.join(arguments)} failed")
    return used


def cpu_seconds(used: struct_rusage) -> float:
    """Of all threads, user and system."""
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
