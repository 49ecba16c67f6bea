"""Exports of a bundle of LLaMA2-7B's shape with fewer layers: seconds beside those of a copy, and peak memory.

    python -m tests.benchmarks.export [--layers 4] [--to gguf ...] [--folder FOLDER]

The weights are random, quantized as w8a8s. Each export is a process of its own that checks what it wrote; beside it
what it left is copied with fsync. CPU seconds stand there too: unlike the others they move little with what else runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoTokenizer

from tests.benchmarks.large_model import copy_seconds, make, place, run

TARGETS = ("compressed-tensors", "gguf", "vllm-ascend", "vllm-ascend-310p", "mindie")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--to", nargs="+", default=TARGETS)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        make(folder / "model", arguments.layers)
        cut_words(folder / "model")
        run(folder, "w8a8s", None)
        shutil.rmtree(folder / "model")
        print(f"{arguments.layers} layers of LLaMA2-7B's shape, w8a8s")
        print(
            "| target | GB | export, s | CPU s | copy, s | export / copy | peak, GiB |\n|---|---|---|---|---|---|---|"
        )
        for target in arguments.to:
            report(place(folder, "w8a8s", None) / "artifact", folder / "export", target)


def cut_words(model: Path) -> None:
    """Give the tokenizer of bytes a cut that gguf has a name for."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    cut = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = cut
    tokenizer.save_pretrained(model)


def report(artifact: Path, folder: Path, target: str) -> None:
    """A row of the table."""
    program = str(Path(sys.executable).with_name("slimrun-export"))
    begin = time.monotonic()
    child = os.posix_spawn(program, [program, str(artifact), str(folder), "--to", target], os.environ, file_actions=[
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ])  # fmt: skip
    _, status, used = os.wait4(child, 0)
    seconds = time.monotonic() - begin
    if status:
        sys.exit(f"the export to {target} failed")
    size = sum(file.stat().st_size for file in folder.iterdir())
    copy = copy_seconds(folder, folder.with_name("copy"))
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20
    print(
        f"| {target} | {size / 1e9:.2f} | {seconds:.1f} | {cpu:.1f} | {copy:.1f} | {seconds / copy:.2f} | {peak:.2f} |",
        flush=True,
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
