"""A run on a model of LLaMA2-7B's shape with fewer layers: seconds by stage, peak memory, bytes read and written.

    python tests/benchmarks/large_model.py [--layers 4] [--memory 512MiB] [--quant w8a8s ...] [--folder FOLDER] [--same]

The weights are random, in float16 shards in a temporary folder. Each method runs as a process of its own on four short
prompts and two short windows, its tensors bounded to `--memory`; beside it the shards are copied with fsync. `--same`
runs each again with everything in memory, and compares the bundles byte by byte. `--quant rdoq` says what its products
alone would take at the speed of this machine. `--peers PYTHON ...` are interpreters of environments that have
auto-round (`pip install auto-round`) or llm-compressor (`pip install llmcompressor`): the same folder in W8A8 by
rounding alone.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig

from slimrun.ops.calibration.rdoq.work import Work
from slimrun.ops.export.shards import ShardWriter
from slimrun.ops.format.products import for_products
from slimrun.ops.model.skeleton import skeleton
from slimrun.ops.model.tokenizer import byte_tokenizer
from slimrun.runner.speed import operations

BLOCK = 512  # bytes that getrusage counts blocks of
PROMPTS = [
    "The river rises in the hills and ends in the sea.",
    "A number is prime when nothing but one and itself divides it.",
    "Bread is made of flour, water, salt and time.",
    "The first railways carried coal, and only later people.",
]
PEERS = {  # llm-compressor brings the other one
    "llmcompressor": "from llmcompressor import model_free_ptq; model_free_ptq(sys.argv[1], sys.argv[2], "
    "scheme='W8A8', ignore=['lm_head', 're:.*embed_tokens'], device='cpu')",
    "auto_round": "from auto_round import AutoRound; AutoRound(sys.argv[1], scheme='INT8_W8A8', iters=0, nsamples=4, "
    "seqlen=64, batch_size=1, device_map='cpu', disable_opt_rtn=True)"
    ".quantize_and_save(sys.argv[2], format='auto_round')",
}
WIDTH, INNER = 4096, 11008
LINEARS = {  # of a layer
    **dict.fromkeys(["attention.q", "attention.k", "attention.v", "output.o"], (WIDTH, WIDTH)),
    **dict.fromkeys(["mlp.gate", "mlp.up"], (INNER, WIDTH)),
    "mlp.down": (WIDTH, INNER),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--memory", default="512MiB", help="device.max_memory.cpu")
    parser.add_argument("--quant", nargs="+", default=["w8a8s", "w8a8"])
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    parser.add_argument("--same", action="store_true", help="compare with runs in memory, bundle by bundle")
    parser.add_argument("--peers", nargs="+", default=[], help="interpreters that have auto-round or llm-compressor")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        size = make(folder / "model", arguments.layers)
        print(f"{arguments.layers} layers of LLaMA2-7B's shape: {size / 1e9:.2f} GB in float16")
        print(f"a plain copy of the shards with fsync: {copy_seconds(folder / 'model', folder / 'copy'):.1f} s")
        for python in arguments.peers:
            run_peer(python, folder)
        for quant in arguments.quant:
            report(quant, results := run(folder, quant, arguments.memory))
            if quant == "rdoq":
                least = product_seconds(arguments.layers, sum(map(len, PROMPTS)))
                spent = results["time/quantize_s"] + results["time/calibrate_s"]
                print(f"    quantize and calibrate take {spent / least:.1f} times their products' {least:.0f} s")
            if arguments.same:
                report(f"{quant}, in memory", run(folder, quant, None))
                print(f"bundles are {compared(folder, quant)}")


def make(folder: Path, layers: int) -> int:
    """Random weights in float16 shards, config and a tokenizer of bytes; returns the weights' bytes."""
    folder.mkdir()
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32000, max_position_embeddings=4096, rms_norm_eps=1e-5, dtype="float16",
    )  # fmt: skip
    shapes = {name: parameter.shape for name, parameter in skeleton(config).named_parameters()}
    writer, generator = ShardWriter(folder, "model", 1.0, shapes), torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator).mul_(0.02) if len(shape) == 2 else torch.ones(shape)
        writer.add(name, drawn.half())
    shards = writer.close()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return sum(shard.stat().st_size for shard in shards)


def copy_seconds(source: Path, target: Path) -> float:
    """How long a folder's files take to be on the disk once more."""
    begin = time.monotonic()
    target.mkdir()
    for file in source.iterdir():
        with file.open("rb") as given, (target / file.name).open("wb") as out:
            shutil.copyfileobj(given, out, 1 << 24)
            out.flush()
            os.fsync(out.fileno())
    seconds = time.monotonic() - begin
    shutil.rmtree(target)
    return seconds


def run(folder: Path, quant: str, memory: str | None) -> dict[str, float]:
    """results.json of a run, with the bytes that its process read and wrote."""
    bound = "null" if memory is None else memory
    command = [
        str(Path(sys.executable).with_name("slimrun")), f"quant={quant}", "model=hf", f"model.path={folder / 'model'}",
        f"device.max_memory.cpu={bound}", "tracking=none", f"calibration.prompts={json.dumps(PROMPTS)}",
        f"device.offload_folder={folder}", f"cache.dir={folder / 'cache'}",
        "task=[perplexity]", "task.perplexity.windows=2", "task.perplexity.window=64",
        f"hydra.run.dir={place(folder, quant, memory)}",
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    results: dict[str, float] = json.loads((place(folder, quant, memory) / "results.json").read_text(encoding="utf-8"))
    return {
        **results,
        "read": BLOCK * (after.ru_inblock - before.ru_inblock),
        "written": BLOCK * (after.ru_oublock - before.ru_oublock),
    }


def product_seconds(layers: int, tokens: int) -> float:
    """How long the products that rdoq consists of take at the speed that this machine has."""
    linears = {f"{layer}.{name}": shape for layer in range(layers) for name, shape in LINEARS.items()}
    work, fast = Work(linears, tokens, tokens), for_products(torch.zeros(1)).dtype
    return work.products / operations(fast) + work.factors / operations(torch.float32)


def run_peer(python: str, folder: Path) -> None:
    """A line on what the peer of this environment takes."""
    found = [name for name in PEERS if not subprocess.run([python, "-c", f"import {name}"], check=False).returncode]
    if not found:
        raise ValueError(f"--peers {python} has none of {', '.join(PEERS)}")
    [name, *_] = found
    process = subprocess.Popen([python, "-c", f"import sys; {PEERS[name]}", folder / "model", folder / name])
    begin = time.monotonic()
    _, status, used = os.wait4(process.pid, 0)
    print(
        f"{name}: {time.monotonic() - begin:.0f} s, {used.ru_utime + used.ru_stime:.0f} of the processor, peak "
        f"{used.ru_maxrss / 2**20:.2f} GiB, written {BLOCK * used.ru_oublock / 1e9:.2f} GB, status {status}"
    )


def place(folder: Path, quant: str, memory: str | None) -> Path:
    """Where a run puts its files."""
    return folder / f"{quant}-{memory or 'resident'}"


def report(what: str, results: dict[str, float]) -> None:
    """A line for the run, and one for its stages."""
    stages = {key[5:-2]: value for key, value in results.items() if key.startswith("time/")}
    print(
        f"{what}: {sum(stages.values()):.0f} s, peak {results['memory/peak_rss_bytes'] / 2**30:.2f} GiB, "
        f"read {results['read'] / 1e9:.2f} GB, written {results['written'] / 1e9:.2f} GB"
    )
    print("    " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages.items()))


def compared(folder: Path, quant: str) -> str:
    """Whether the bundles of a bounded run and of one in memory are the same."""
    bounded, resident = sorted(folder.glob(f"{quant}-*/artifact"))
    names = sorted(file.name for file in resident.iterdir())
    same, different, missing = filecmp.cmpfiles(bounded, resident, names, shallow=False)
    return f"equal, {len(same)} files" if not different + missing else f"different: {different + missing}"


if __name__ == "__main__":
    main()
