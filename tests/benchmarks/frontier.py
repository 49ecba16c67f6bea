"""What each method loses at which size: two domains of text, weights alone and with int8 inputs, in one run.

    python tests/benchmarks/frontier.py [--model DIR] [--windows 8] [--only gptq,watersic] [--picture frontier.png]

The model is SmolLM2, or any folder of transformers; `off_grid.py` makes some whose weights never were 4-bit. Bits are
coded bits a weight, all overhead counted. KL is to the float model, in nats a token, with a 95 % interval over windows.
Wikipedia is the domain of the calibration text (other articles), medicine is another. Knobs of quant=rdoq were chosen
on articles that stand in neither. Prints a table, never asserts.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from slimrun.evaluation.base import Outputs, Reference
from slimrun.evaluation.source.pinned import pinned
from slimrun.evaluation.task.perplexity import Perplexity
from slimrun.ops.calibration.base import silent
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native
from slimrun.ops.format.linear import Int8Table, QuantizedLinear
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.runner.config import build, composed
from slimrun.runner.experiment import Experiment

CO_SPARSE, RDOQ_THERE = "w8a8s 0.011", "rdoq 3.513"
SETTINGS = ["task=[perplexity]", "tracking=none"]
CURVE = ("rdoq 2.5", "rdoq 2.8", RDOQ_THERE, "rdoq 4.0")  # one dial
THERE = "quant.target_bits=3.513"  # where w8a8s ends
METHODS: dict[str, list[str]] = {
    RDOQ_THERE: ["quant=rdoq", THERE],  # first: it chooses the float inputs
    CO_SPARSE: ["quant=w8a8s"],
    "w8a8s 0.1": ["quant=w8a8s", "quant.fraction=0.1"],
    "lowbit 0.011": ["quant=lowbit"],
    "w8a8": ["quant=w8a8"],
    "gptq, a step a tensor": ["quant=gptq", THERE],
    "gptq, a step a row": ["quant=gptq", THERE, "quant.steps=row"],
    "watersic": ["quant=watersic", THERE],
    "entquant": ["quant=entquant", THERE],
    "rdoq_data_free": ["quant=rdoq_data_free", THERE],
    "rdoq 2.5": ["quant=rdoq", "quant.target_bits=2.5"],
    "rdoq 2.8": ["quant=rdoq", "quant.target_bits=2.8"],
    "rdoq 3.513, steps not tuned": ["quant=rdoq", THERE, "quant.tune_rate=0"],
    "rdoq 4.0": ["quant=rdoq", "quant.target_bits=4.0"],
    "rdoq_lowbit": ["quant=rdoq_lowbit"],
    "rdoq_w8a8": ["quant=rdoq_w8a8"],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, metavar="DIR")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--only", default="", help=f"beginnings of rows, by commas; {RDOQ_THERE} is always there")
    parser.add_argument("--picture", type=Path, default=None)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        medicine = Path(folder) / "medicine.txt"
        lines = pinned("consensus_summary").read_text(encoding="utf-8").splitlines()
        medicine.write_text("\n\n".join(" ".join(json.loads(line)["claims"]) for line in lines), encoding="utf-8")
        domains = {
            "wikipedia": Perplexity(windows=options.windows),
            "medicine": Perplexity(path=str(medicine), windows=options.windows),
        }
        settings = [*SETTINGS, *(["model=hf", f"model.path={options.model}"] if options.model else [])]
        wanted = (RDOQ_THERE, *options.only.split(","))
        methods = {label: overrides for label, overrides in METHODS.items() if label.startswith(wanted)}
        show(measured(domains, settings, methods), options.picture)


def measured(
    domains: dict[str, Perplexity], settings: list[str], methods: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """A row a method: bits, seconds, and by domain losses with int8 inputs and of the weights alone."""
    experiment = build(composed(settings))
    model = load(experiment)
    floats = {name: task.evaluate(model, None, silent) for name, task in domains.items()}
    references = {name: Reference(outputs, model.output_head()) for name, outputs in floats.items()}
    rows: list[dict[str, Any]] = []
    chosen: list[str] = []  # linears whose inputs quant=rdoq leaves float
    for label, overrides in methods.items():
        del model
        gc.collect()
        experiment = build(composed([*settings, *overrides]))
        texts = experiment.calibration.texts()
        model, start = load(experiment), time.perf_counter()
        calibrator = experiment.framework.calibrator(model, experiment.quant, texts, experiment.calibration.length)
        calibrator.quantize(experiment.known_statistics(model, texts))
        layers = calibrator.calibrate(silent)
        chosen = chosen or [layer.name for layer in layers if layer.float_inputs]
        row: dict[str, Any] = {"method": label, "seconds": time.perf_counter() - start, "bits": bits(model)}
        rows.append(row | losses(model, domains, references, "int8 inputs"))
        fair: list[dict[str, Any]] = []
        if label == CO_SPARSE:  # with as many float inputs: its own worst, and those that are quant=rdoq's worst
            widest = sorted(layers, key=lambda layer: layer.input_low - layer.input_high)[: len(chosen)]
            for which, names in (("widest", [layer.name for layer in widest]), ("rdoq's", chosen)):
                replaced = float_inputs(model, names)
                some = {**row, "method": f"{CO_SPARSE}, {which} {len(names)} inputs float"}
                fair.append(some | losses(model, domains, references, "int8 inputs"))
                put_back(model, replaced)
        float_inputs(model, model.quantized())
        alone = losses(model, domains, references, "weights alone")
        rows[-1] |= alone
        rows += [one | alone for one in fair]
        for done in rows[-1 - len(fair) :]:
            print(json.dumps(done), flush=True)
    return rows


def losses(
    model: TorchModel, domains: dict[str, Perplexity], references: dict[str, Reference], kind: str
) -> dict[str, tuple[float, float, float]]:
    """By domain: KL, half its interval, perplexity's change in percent."""
    by_domain = {}
    for name, task in domains.items():
        outputs = task.evaluate(model, references[name], silent)
        report = task.compare("perplexity", references[name].outputs, outputs).metrics
        change = float(report["perplexity/delta_pct"])
        by_domain[f"{name}, {kind}"] = (float(report["fidelity/kl_mean"]), interval(outputs), change)
    return by_domain


def load(experiment: Experiment) -> TorchModel:
    """The float model."""
    model = experiment.framework.load(experiment.model, experiment.device)
    assert isinstance(model, TorchModel)
    return model


def bits(model: TorchModel) -> float:
    """Coded bits a weight, a float32 step a row included."""
    tensors = model.tensors()
    weights = {name: tensors[f"{name}.weight"].numpy() for name in model.quantized()}
    coded = Compressor(Native()).run(weights)
    size = sum(part.nbytes for parts in coded.values() for part in parts.values())
    size += 4 * sum(weight.shape[0] for weight in weights.values())
    return 8 * size / sum(weight.size for weight in weights.values())


def float_inputs(model: TorchModel, names: list[str]) -> dict[str, nn.Module]:
    """Make these quantized linears float ones with the weights they have; those that were there."""
    replaced: dict[str, nn.Module] = {}
    for name in names:
        linear = model.module.get_submodule(name)
        if isinstance(linear, QuantizedLinear) and not isinstance(linear, Int8Table):  # a table's states are float
            plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
            plain.weight = nn.Parameter(linear.floats()[0], requires_grad=False)
            if linear.bias is not None:
                plain.bias = nn.Parameter(linear.bias.float(), requires_grad=False)
            model.module.set_submodule(name, plain)
            replaced[name] = linear
    return replaced


def put_back(model: TorchModel, replaced: dict[str, nn.Module]) -> None:
    """The linears that were there."""
    for name, linear in replaced.items():
        model.module.set_submodule(name, linear)


def interval(outputs: Outputs) -> float:
    """Half the 95 % interval of the mean KL, windows being independent."""
    means = np.asarray(outputs["kl"], np.float64).mean(axis=1)  # [windows, tokens]
    return float(1.96 * means.std(ddof=1) / len(means) ** 0.5)


def show(rows: list[dict[str, Any]], picture: Path | None) -> None:
    """The table, how many times less is lost at the size of w8a8s, and the picture if asked for."""
    kinds = [key for key in rows[0] if isinstance(rows[0][key], tuple)]
    table = Table("method", "bits", "s", *kinds, title="KL ± interval, perplexity")
    for row in rows:
        cells = [f"{row[kind][0]:.3f} ± {row[kind][1]:.3f}, {row[kind][2]:+.1f} %" for kind in kinds]
        table.add_row(row["method"], f"{row['bits']:.3f}", f"{row['seconds']:.0f}", *cells)
    Console(width=180).print(table)
    ours = next(row for row in rows if row["method"] == RDOQ_THERE)
    for row in rows:
        if row["method"].startswith(CO_SPARSE):
            for kind in kinds:
                print(f"{kind}: {row['method']} loses {row[kind][0] / ours[kind][0]:.2f} times as much as {RDOQ_THERE}")
    curve = sorted((row for row in rows if row["method"] in CURVE), key=lambda row: -row["bits"])
    for row in rows:
        if not row["method"].startswith("rdoq") and len(curve) > 1:  # a dial has two places at least
            for kind in kinds:
                losses, sizes = [one[kind][0] for one in curve], [one["bits"] for one in curve]
                if row[kind][0] < losses[0]:
                    continue
                needed = float(np.interp(np.log(row[kind][0]), np.log(losses), sizes))
                least = "no more than " if row[kind][0] > losses[-1] else ""
                share = needed / row["bits"] - 1
                print(f"{kind}: what {row['method']} loses, rdoq loses at {least}{needed:.2f} bits, {share:+.0%}")
    if picture is not None:
        figure, axes = plt.subplots(2, (len(kinds) + 1) // 2, figsize=(13, 9), sharex=True, sharey=True, squeeze=False)
        for axis, kind in zip(axes.flat, kinds):
            axis.plot([row["bits"] for row in curve], [row[kind][0] for row in curve], "C1-", alpha=0.5)
            # float inputs change nothing of the weights alone
            shown = [row for row in rows if "weights alone" not in kind or "inputs float" not in row["method"]]
            for index, row in enumerate(sorted(shown, key=lambda row: row[kind][0])):
                color = "C1" if row["method"].startswith("rdoq") else "C0"
                axis.errorbar(row["bits"], row[kind][0], row[kind][1], fmt="o", color=color, capsize=2)
                side, place = ("left", (7, 3)) if index % 2 else ("right", (-7, -8))
                where = (row["bits"], row[kind][0])
                axis.annotate(row["method"], where, place, textcoords="offset points", fontsize=7, ha=side)
            axis.set(title=kind, yscale="log", xlim=(1.5, 8))
            axis.grid(alpha=0.3)
        for axis in axes[-1]:
            axis.set_xlabel("coded bits a weight")
        for axis in axes[:, 0]:
            axis.set_ylabel("KL to the float model, nats a token")
        figure.tight_layout()
        figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
