"""Whole files against what they lose: SmolLM2, weights alone, everything in the file counted, in one run.

    python tests/benchmarks/file_frontier.py [--windows 8] [--picture files.png] [--gguf FOLDER]

quant=rdoq at several sizes of the file, w8a8s and lowbit with int8 embeddings, and the .gguf files of the same model
that lie in FOLDER: llama.cpp's own quantizers, whose tensors the package gguf makes floats again, so that only weights
differ. A .gguf file counts with the bytes of its tensors. SmolLM2's width of 576 is no multiple of 256, so llama.cpp
falls back to plainer types; on wider models its files are better. To make them:

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -DLLAMA_CURL=OFF && cmake --build build
    slimrun quant=none export=[gguf] export.gguf.dtype=float32 'task=[perplexity]'   # FLOAT.gguf
    build/bin/llama-imatrix -m FLOAT.gguf -f CALIBRATION.txt -o imatrix.gguf
    build/bin/llama-quantize --imatrix imatrix.gguf FLOAT.gguf FOLDER/IQ3_M.gguf IQ3_M

Prints a table, never asserts.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from gguf import GGUFReader
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from slimrun.evaluation.base import Reference
from slimrun.evaluation.task.perplexity import Perplexity
from slimrun.ops import bundle
from slimrun.ops.calibration.base import silent
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.runner.config import build, composed
from tests.benchmarks.frontier import float_inputs, load, losses

SETTINGS = ["task=[perplexity]", "tracking=none"]
TARGETS = (3.0, 3.5, 3.9, 4.4, 5.0)  # bits a parameter of the file
METHODS: dict[str, list[str]] = {
    **{f"rdoq {target}": ["quant=rdoq", "quant.activations=float", f"quant.target_file_bits={target}"]
       for target in TARGETS},
    "w8a8s": ["quant=w8a8s", "quant.embeddings=int8"],
    "lowbit": ["quant=lowbit", "quant.embeddings=int8"],
}  # fmt: skip
KIND = "weights alone"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--picture", type=Path, default=None)
    parser.add_argument("--gguf", type=Path, default=None, help="folder with .gguf files of the same model")
    parser.add_argument("--model", default="smollm2_135m", help="a choice of the group model")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    settings = [*SETTINGS, f"model={options.model}"]
    show(measured(settings, Perplexity(windows=options.windows), options.gguf), options.picture)


def measured(settings: list[str], task: Perplexity, folder: Path | None) -> list[dict[str, Any]]:
    """A row a file: its bytes and what its weights lose."""
    model = load(build(composed(settings)))
    outputs = task.evaluate(model, None, silent)
    references = {"": Reference(outputs, model.output_head())}
    rows = []
    for label, overrides in METHODS.items():
        del model
        gc.collect()
        experiment = build(composed([*settings, *overrides]))
        texts, model = experiment.calibration.texts(), load(experiment)
        calibrator = experiment.framework.calibrator(model, experiment.quant, texts, experiment.calibration.length)
        calibrator.quantize(experiment.known_statistics(model, texts))
        layers = calibrator.calibrate(silent)
        size = file_bytes(model, experiment.quant.quant_type, {one.name: one.format for one in layers if one.format})
        float_inputs(model, model.quantized())
        rows.append(row(label, size, model, task, references))
    for file in sorted(folder.glob("*.gguf")) if folder else []:
        model = TorchModel(dequantized(file), model.tokenizer, file.stem, file.stem)
        size = sum(int(tensor.n_bytes) for tensor in GGUFReader(file).tensors)
        rows.append(row(f"llama.cpp {file.stem}", size, model, task, references))
    return rows


def row(label: str, size: int, model: TorchModel, task: Perplexity, references: dict[str, Reference]) -> dict[str, Any]:
    """What is printed of a file."""
    [(loss, interval, change)] = losses(model, {"": task}, references, KIND).values()
    cells = {"file": label, "bytes": size, "loss": loss, "interval": interval, "perplexity, %": change}
    print(json.dumps(cells), flush=True)
    return cells


def file_bytes(model: TorchModel, quant_type: str, formats: dict[str, str]) -> int:
    """Bytes of the weight file of its bundle."""
    tensors, codec = model.tensors(), Native()
    coded = Compressor(codec).run({name: tensors[f"{name}.weight"].numpy() for name in model.quantized()})
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "artifact"
        return bundle.write(
            place, tensors, coded, quant_type, codec, model.save_description, formats=formats
        ).stat().st_size  # fmt: skip


def dequantized(file: Path) -> Any:
    """The float model whose weights a .gguf file holds, in the names and the order of rows of transformers."""
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def show(rows: list[dict[str, Any]], picture: Path | None) -> None:
    """The table, and the picture if asked for."""
    table = Table("file", "MB", "KL", "perplexity", title="whole files, weights alone")
    for one in sorted(rows, key=lambda one: int(one["bytes"])):
        loss = f"{one['loss']:.3f} ± {one['interval']:.3f}"
        table.add_row(one["file"], f"{one['bytes'] / 1e6:.1f}", loss, f"{one['perplexity, %']:+.1f} %")
    Console(width=100).print(table)
    if picture is not None:
        figure, axis = plt.subplots(figsize=(9, 6))
        for index, one in enumerate(sorted(rows, key=lambda one: float(one["loss"]))):
            color = "C1" if one["file"].startswith("rdoq") else "C0"
            where = (one["bytes"] / 1e6, one["loss"])
            axis.errorbar(*where, one["interval"], fmt="o", color=color, capsize=2)
            side, place = ("left", (7, 3)) if index % 2 else ("right", (-7, -8))
            axis.annotate(one["file"], where, place, textcoords="offset points", fontsize=7, ha=side)
        axis.set(xlabel="MB of the whole file", ylabel="KL to the float model, nats a token", yscale="log")
        axis.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
