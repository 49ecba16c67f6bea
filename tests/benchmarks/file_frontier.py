"""Whole files against what they lose: SmolLM2, weights alone, everything in the file counted, in one run.

    python tests/benchmarks/file_frontier.py --work FOLDER [--llama BIN] [--picture files.png] [--windows 16]

quant=rdoq at several sizes of the file, w8a8s and lowbit with int8 embeddings, and llama.cpp's own quantizers with
their importance matrix, of the same float weights and the same calibration articles; their tensors are made floats
again by the package gguf, so that only weights differ. A .gguf file counts with the bytes of its tensors. SmolLM2's
width of 576 is no multiple of 256, so llama.cpp falls back to plainer types; on wider models its files are better.

What is measured is kept in FOLDER, row by row: the same command goes on where it was stopped. BIN is where llama.cpp's
tools lie; without it its files are left out. To build them:

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -DLLAMA_CURL=OFF -DLLAMA_BUILD_TOOLS=ON
    cmake --build build --target llama-quantize llama-imatrix        # BIN is build/bin

Prints a table, never asserts.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
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
from slimrun.ops.export.gguf import FILE
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.runner.config import build, composed
from tests.benchmarks.frontier import float_inputs, load, losses

SETTINGS = ["task=[perplexity]", "tracking=none"]
TARGETS = (3.57, 3.75, 3.93, 4.28, 5.0)  # bits a parameter of the file
METHODS: dict[str, list[str]] = {
    **{f"rdoq {target}": ["quant=rdoq", "quant.activations=float", f"quant.target_file_bits={target}"]
       for target in TARGETS},
    "w8a8s": ["quant=w8a8s", "quant.embeddings=int8"],
    "lowbit": ["quant=lowbit", "quant.embeddings=int8"],
}  # fmt: skip
LLAMA = ("IQ2_M", "Q2_K", "IQ3_XXS", "IQ3_M", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K")
KIND = "weights alone"
OURS, THEIRS = "rdoq", "llama.cpp"
LARGEST = 100e6  # bytes: beyond it SmolLM2's own 4-bit grid is met, which proves nothing

Row = dict[str, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, metavar="FOLDER", help="where rows and .gguf files are kept"
    )
    parser.add_argument(
        "--llama", type=Path, default=None, metavar="BIN", help="folder of llama-quantize, llama-imatrix"
    )
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--picture", type=Path, default=None)
    parser.add_argument("--model", default="smollm2_135m", help="a choice of the group model")
    parser.add_argument("--only", default="", help="measure only rows whose name begins so")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Benchmark([*SETTINGS, f"model={options.model}"], options.windows, options.work, options.only)
    bench.measure_methods()
    if options.llama:
        bench.measure_llama(options.llama.absolute())
    show(bench.rows, options.picture)


class Benchmark:
    """Measures rows that are not yet in the folder."""

    def __init__(self, settings: list[str], windows: int, folder: Path, only: str) -> None:
        self.settings = settings
        self.folder = folder
        self.only = only
        self.task = Perplexity(windows=windows)
        self.kept = folder / f"rows-{windows}.jsonl"
        lines = self.kept.read_text(encoding="utf-8").splitlines() if self.kept.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]
        self.float_model = load(build(composed(settings)))
        self.references: dict[str, Reference] = {}

    def measure_methods(self) -> None:
        """Our own files."""
        for label in self.missing(METHODS):
            self.add(label, *self.quantized(METHODS[label]))

    def measure_llama(self, tools: Path) -> None:
        """llama.cpp's: the float model as .gguf, its importance matrix, and every type."""
        labels = {f"{THEIRS} {kind}": kind for kind in LLAMA}
        for label in self.missing(labels):
            file = self.llama_file(tools, labels[label])
            model = TorchModel(dequantized(file), self.float_model.tokenizer, file.stem, file.stem)
            self.add(label, model, sum(int(tensor.n_bytes) for tensor in GGUFReader(file).tensors))

    def missing(self, labels: Iterable[str]) -> Iterator[str]:
        """Those that are not measured yet."""
        done = {row["file"] for row in self.rows}
        return (label for label in labels if label not in done and label.startswith(self.only))

    def add(self, label: str, model: TorchModel, size: int) -> None:
        """Measure a row, print and keep it."""
        if not self.references:
            outputs = self.task.evaluate(self.float_model, None, silent)
            self.references = {"": Reference(outputs, self.float_model.output_head())}
        [(loss, interval, change)] = losses(model, {"": self.task}, self.references, KIND).values()
        row = {"file": label, "bytes": size, "loss": loss, "interval": interval, "perplexity, %": change}
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        with self.kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def quantized(self, overrides: list[str]) -> tuple[TorchModel, int]:
        """(our model with float inputs, bytes of its weight file); statistics are shared through the cache."""
        gc.collect()
        experiment = build(composed([*self.settings, *overrides]))
        texts, model = experiment.calibration.texts(), load(experiment)
        calibrator = experiment.framework.calibrator(model, experiment.quant, texts, experiment.calibration.length)
        calibrator.quantize(experiment.known_statistics(model, texts))
        layers = calibrator.calibrate(silent)
        size = file_bytes(model, experiment.quant.quant_type, {one.name: one.format for one in layers if one.format})
        float_inputs(model, model.quantized())
        return model, size

    def llama_file(self, tools: Path, kind: str) -> Path:
        """The .gguf file of a type, of the float weights and the importance matrix of the calibration articles."""
        plain, matrix = self.folder / "run" / "export" / "gguf" / FILE, self.folder / "imatrix.gguf"
        file = self.folder / f"{kind}.gguf"
        if not plain.exists():
            export = ["quant=none", "export=[gguf]", "export.gguf.dtype=float32", "task.perplexity.windows=1"]
            run(
                [
                    Path(sys.executable).with_name("slimrun"),
                    *self.settings,
                    *export,
                    f"hydra.run.dir={plain.parents[2]}",
                ]
            )
        if not matrix.exists():
            text = self.folder / "calibration.txt"
            calibration = build(composed([*self.settings, "quant=rdoq"])).calibration
            text.write_text("\n\n".join(calibration.texts()), encoding="utf-8")
            run([tools / "llama-imatrix", "-m", plain, "-f", text, "-o", matrix])
        if not file.exists():
            run([tools / "llama-quantize", "--imatrix", matrix, plain, file, kind])
        return file


def run(command: Sequence[Path | str]) -> None:
    """Run a program; what it says is shown only when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout}")


def file_bytes(model: TorchModel, quant_type: str, formats: dict[str, str]) -> int:
    """Bytes of the weight file of its bundle."""
    tensors, codec = model.tensors(), Native()
    coded = Compressor(codec).run({name: tensors[f"{name}.weight"].numpy() for name in model.quantized()})
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "artifact"
        written = bundle.write(place, tensors, coded, quant_type, codec, model.save_description, formats=formats)
        return written.stat().st_size


def dequantized(file: Path) -> Any:
    """The float model whose weights a .gguf file holds, in the names and the order of rows of transformers."""
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def show(rows: list[Row], picture: Path | None) -> None:
    """The table, how many times less is lost than by llama.cpp, and the picture if asked for."""
    table = Table("file", "MB", "KL", "perplexity", title="whole files, weights alone")
    for row in sorted(rows, key=lambda row: int(row["bytes"])):
        loss = f"{row['loss']:.3f} ± {row['interval']:.3f}"
        table.add_row(row["file"], f"{row['bytes'] / 1e6:.1f}", loss, f"{row['perplexity, %']:+.1f} %")
    Console(width=100).print(table)
    ours = sorted((row for row in rows if row["file"].startswith(OURS)), key=lambda row: int(row["bytes"]))
    theirs = [row for row in rows if row["file"].startswith(THEIRS) and row["bytes"] <= LARGEST]
    sizes, losses = [row["bytes"] for row in ours], [row["loss"] for row in ours]
    for row in sorted(theirs, key=lambda row: int(row["bytes"])):
        if ours and row["bytes"] >= sizes[0]:
            best = min(other["loss"] for other in theirs if other["bytes"] >= row["bytes"])
            own = float(np.exp(np.interp(row["bytes"], sizes, np.log(losses))))
            most = "at most " if row["bytes"] > sizes[-1] else ""
            print(
                f"{row['bytes'] / 1e6:.1f} MB: rdoq loses {most}{own:.4f}, {own / best:.2f} of the best llama.cpp file "
                f"of that size or larger, up to {LARGEST / 1e6:.0f} MB ({best:.3f})"
            )
    if picture is not None:
        draw(rows, picture)


def draw(rows: list[Row], picture: Path) -> None:
    """Bytes against KL."""
    figure, axis = plt.subplots(figsize=(9, 6))
    for color, sign in (("C1", OURS), ("C0", THEIRS)):
        line = sorted((row["bytes"] / 1e6, row["loss"]) for row in rows if row["file"].startswith(sign))
        axis.plot(*zip(*line), color=color, alpha=0.4)
    for index, row in enumerate(sorted(rows, key=lambda row: float(row["loss"]))):
        name = row["file"]
        color = "C1" if name.startswith(OURS) else "C0" if name.startswith(THEIRS) else "0.4"
        where = (row["bytes"] / 1e6, row["loss"])
        axis.errorbar(*where, row["interval"], fmt="o", color=color, capsize=2)
        side, place = ("left", (7, 3)) if index % 2 else ("right", (-7, -8))
        axis.annotate(name, where, place, textcoords="offset points", fontsize=7, ha=side)
    axis.set(xlabel="MB of the whole file", ylabel="KL to the float model, nats a token", yscale="log")
    axis.margins(x=0.15)  # names stand beside the points
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
