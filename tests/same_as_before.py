"""What a change of structure must leave alone, bit for bit: sha256 of every tensor and every number of small runs.

    python tests/same_as_before.py before.json      # in the environment of the old state
    python tests/same_as_before.py after.json       # in that of the new one; then: diff before.json after.json

Runs `slimrun` of the environment on tiny_llama for every choice of quant=, with MindSpore too where it is installed
(`--framework`), and with --smollm2 on SmolLM2 for w8a8s and rdoq. Both states need the same number of threads
(OMP_NUM_THREADS): it decides the order of sums, and with it the last digits of the steps that rdoq tunes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

ROOT = Path(__file__).parents[1]
OTHER = ("time/", "memory/", "config_hash", "repro", "artifact/path")  # of the machine, or of what things are called
TINY = ["model=tiny_llama", "task=[perplexity]", "task.perplexity.windows=4", "task.perplexity.window=64"]


def tensors(folder: Path) -> dict[str, str]:
    """sha256 by name of everything that safetensors files in the folder hold."""
    hashes = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in sorted(weights.keys()):
                tensor = weights.get_tensor(name).contiguous()
                data = tensor.flatten().view(torch.uint8).numpy().tobytes()
                hashes[name] = hashlib.sha256(str((tensor.dtype, tensor.shape)).encode() + data).hexdigest()
    return hashes


def run(*arguments: str) -> dict[str, Any]:
    """Tensors and numbers of one run, or what it said when it was refused."""
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).with_name("slimrun"), "tracking=none", "hydra.run.dir=run", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            return {"status": done.returncode, "said": done.stderr.strip().splitlines()[-1:]}
        results = json.loads((Path(folder) / "run" / "results.json").read_text(encoding="utf-8"))
        numbers = {key: value for key, value in sorted(results.items()) if not key.startswith(OTHER)}
        return {"results": numbers, "tensors": tensors(Path(folder) / "run" / "artifact")}


def main() -> None:
    """Write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--framework", choices=["pytorch", "mindspore"], default="pytorch")
    parser.add_argument("--smollm2", action="store_true")
    arguments = parser.parse_args()
    runs = {}
    for choice in sorted(file.stem for file in (ROOT / "conf" / "quant").glob("*.yaml")):
        runs[choice] = run(*TINY, f"framework={arguments.framework}", f"quant={choice}")
        print(choice, len(runs[choice].get("tensors", "")), runs[choice].get("said", ""), file=sys.stderr)
    if arguments.smollm2:
        for choice in ("w8a8s", "rdoq"):
            runs[f"smollm2 {choice}"] = run("task=[perplexity]", f"quant={choice}")
            print(choice, "on SmolLM2", file=sys.stderr)
    arguments.file.write_text(json.dumps(runs, indent=1, sort_keys=True), encoding="utf-8")


if __name__ == "__main__":
    main()
