"""Damages a bundle at random and loads it: each time a ValueError, or a model that computes what it did.

    python -m tests.fuzz.bundle [--mutations 20000] [--kind safetensors|ckpt] [--seed 0] [--memory-gib 2]

Bits, ranges and lengths of every file, values and keys of the JSON ones; every other time without the manifest, as in
an older bundle, where damage may pass. Workers are forked and may take so much memory more than they have at the start.
Prints how often what happened, and how much memory was touched at most. Exit status 1 if anything but a ValueError
came out of it, or a worker died.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slimrun.ops import bundle, load_bundle
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native
from slimrun.ops.framework import mindspore
from slimrun.ops.framework.pytorch import PyTorch
from slimrun.ops.quant.w8a8s import W8A8S
from tests.conftest import TEXTS, tiny

SECONDS = 60  # a load that takes longer hangs
FILES = ("weight", "weight", "weight", "description", "slimrun.json", "config.json", "generation", "tokenizer.json",
         "tokenizer_config")  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, 1, -1, 3, 255, 1 << 31, 1 << 40, 1 << 63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x",
    "../x", "/etc/passwd", "float16", "x" * 5000, "\n\0\ud800", [], {}, [[]], ["x"] * 100, {"x": {"x": 1}},
)  # fmt: skip

Bytes = bytearray


def flip(data: Bytes, rng: random.Random) -> None:
    """One to eight bits."""
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: Bytes, rng: random.Random) -> None:
    """The end is missing, or there is more of it."""
    if rng.random() < 0.8:
        del data[rng.randrange(len(data)) :]
    else:
        data += rng.randbytes(rng.randrange(1, 64))


def swap(data: Bytes, rng: random.Random) -> None:
    """Two ranges change places."""
    length = rng.randrange(1, max(2, len(data) // 4))
    first, second = (rng.randrange(len(data)) for _ in range(2))
    data[first : first + length], data[second : second + length] = (
        data[second : second + length],
        data[first : first + length],
    )


def fill(data: Bytes, rng: random.Random) -> None:
    """A range is zeros, ones or noise."""
    start, length = rng.randrange(len(data)), rng.randrange(1, 64)
    end = min(len(data), start + length)
    data[start:end] = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))[: end - start]


def edit(content: Any, rng: random.Random) -> None:
    """A value or a key of a JSON document is another one."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(content[key], dict | list) and content[key] and rng.random() < 0.8:
            content = content[key]
            continue
        if rng.random() < 0.15:
            del content[key]
        elif isinstance(content, dict) and rng.random() < 0.1:
            content[f"{key}x"] = content.pop(key)
        else:
            content[key] = rng.choice(VALUES)
        return


def damaged(data: bytes, name: str, rng: random.Random) -> bytes:
    """The bytes of a file with one thing changed."""
    header = 8 + int.from_bytes(data[:8], "little") if name.endswith(".safetensors") else 0
    if (name.endswith(".json") or header) and rng.random() < 0.6:
        content = json.loads(data[8:header] if header else data)
        edit(content, rng)
        text = json.dumps(content).encode("utf-8", "surrogatepass")
        return len(text).to_bytes(8, "little") + text + data[header:] if header else text
    changed = bytearray(data)
    change: Callable[[Bytes, random.Random], None] = rng.choice((flip, flip, cut, swap, fill))
    change(changed, rng)
    return bytes(changed)


def make(folder: Path, kind: str) -> str:
    """A bundle to damage; the checksum of what it computes."""
    model = tiny(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_key_value_heads=4, head_dim=8)
    PyTorch().calibrator(model, W8A8S(), TEXTS, 64).run()
    tensors = model.tensors()
    coded = Compressor(Native()).run({name: tensors[f"{name}.weight"].numpy() for name in model.quantized()})
    bundle.write(folder, tensors, coded, "W8A8S", Native(), model.save_description, f".{kind}")
    return model.logits_checksum()


class Target:
    """A bundle, pristine in memory, and a folder in which one file of it at a time is damaged."""

    def __init__(self, pristine: Path, folder: Path, expected: str) -> None:
        self.files = {file.name: file.read_bytes() for file in pristine.iterdir()}
        self.folder = folder
        self.expected = expected
        folder.mkdir()

    def attempt(self, seed: int, number: int) -> str:
        """What a damaged bundle does; the same for the same seed and number."""
        rng = random.Random(f"{seed} {number}")
        files = dict(self.files)
        older = rng.random() < 0.5
        if older:
            del files["slimrun.json"]
        which = rng.choice([part for part in FILES if any(part in name for name in files)])
        name = next(name for name in sorted(files) if which in name)
        files[name] = damaged(files[name], name, rng)
        for file, data in files.items():
            (self.folder / file).write_bytes(data)
        try:
            return f"{'older bundle' if older else 'with manifest':13s} {self._load()}"
        finally:
            for file in self.folder.iterdir():
                file.unlink()

    def _load(self) -> str:
        try:
            model = load_bundle(self.folder)
        except ValueError as error:
            line = str(error)
            good = line.startswith(str(self.folder)) and line.isprintable() and len(line) < 1000
            return "ValueError" if good else f"UNCLEAR: {line[:200]!r}"
        except BaseException as error:
            return f"{type(error).__name__}: {str(error)[:200]!r}"
        try:
            return "loads, computes the same" if model.logits_checksum() == self.expected else "loads, computes other"
        except Exception as error:
            return f"loads, cannot compute ({type(error).__name__})"


def is_good(outcome: str) -> bool:
    """An older bundle has no checksums of its float tensors and of its config; one with a manifest has."""
    if outcome.startswith("older"):
        return "ValueError" in outcome or "loads" in outcome
    return outcome.endswith(("ValueError", "computes the same"))


def work(target: Target, seed: int, numbers: range, memory: int, results: Any) -> None:
    """In a worker: tells the number before each attempt, and what came of it."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Rust says there that it panicked
    load_bundle_once(target)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        results.send((number, None))
        signal.alarm(SECONDS)
        outcome = target.attempt(seed, number)
        signal.alarm(0)
        results.send((number, outcome))
    results.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "done"))


def load_bundle_once(target: Target) -> None:
    """Load a bundle, so that everything is imported before memory is limited."""
    for file, data in target.files.items():
        (target.folder / file).write_bytes(data)
    assert load_bundle(target.folder).logits_checksum() == target.expected


def run(pristine: Path, expected: str, seed: int, numbers: range, memory: int) -> tuple[collections.Counter[str], int]:
    """Outcomes of these numbers, and KiB of memory touched more than at the start; who dies is succeeded."""
    outcomes: collections.Counter[str] = collections.Counter()
    growth = 0
    context = multiprocessing.get_context("fork")
    while numbers:
        scratch = Path(tempfile.mkdtemp(prefix="slimrun-fuzz-"))
        receiver, sender = context.Pipe(False)
        target = Target(pristine, scratch / "artifact", expected)
        worker = context.Process(target=work, args=(target, seed, numbers, memory, sender))
        worker.start()
        sender.close()
        current = numbers[0]
        try:
            while True:
                number, outcome = receiver.recv()
                if outcome == "done":
                    growth = max(growth, number)
                elif outcome is None:
                    current = number
                else:
                    outcomes[outcome] += 1
                    if not is_good(outcome):
                        print(f"seed {seed}, mutation {number}: {outcome}", flush=True)
        except EOFError:
            worker.join()
        shutil.rmtree(scratch)
        if worker.exitcode == 0:
            break
        end = signal.Signals(-worker.exitcode).name if worker.exitcode and worker.exitcode < 0 else worker.exitcode
        outcomes[f"DIED: {end}"] += 1
        print(f"seed {seed}, mutation {current}: died ({end})", flush=True)
        numbers = range(current + numbers.step, numbers.stop, numbers.step)
    return outcomes, growth


def main() -> None:
    """Fuzz and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=20000)
    parser.add_argument("--kind", choices=("safetensors", "ckpt"), default="safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation, to repeat one")
    parser.add_argument("--memory-gib", type=float, default=2.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        pristine = Path(name) / "artifact"
        if arguments.kind == "ckpt":
            mindspore.require()
        expected = make(pristine, arguments.kind)
        numbers = range(arguments.first, arguments.first + arguments.mutations)
        outcomes, growth = run(pristine, expected, arguments.seed, numbers, int(arguments.memory_gib * (1 << 30)))
        size = sum(file.stat().st_size for file in pristine.iterdir())
    for outcome, count in outcomes.most_common():
        print(f"{count:7d}  {outcome}")
    print(f"bundle of {size} bytes; at most {growth} KiB more memory touched than before the first")
    sys.exit(0 if all(map(is_good, outcomes)) else 1)


if __name__ == "__main__":
    main()
