"""`slimrun-compare RUN_A RUN_B`: what run B does differently from run A, paired item by item.

Both runs must have quantized the same float model and measured it alike (equal signatures); then what they kept in
`outputs.npz` is put side by side by the task itself, with A in the float model's place.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from slimrun.evaluation import statistics
from slimrun.evaluation.base import Outputs, Task
from slimrun.runner.config import construct
from slimrun.runner.display import print_anything, print_table
from slimrun.runner.folder import OUTPUTS, RESULTS, flat, read_outputs

COLUMNS = ["", "A", "B", "B - A", "95 % interval", "p", "verdict on B"]
EXACT = (  # known without error: no interval
    ("bits per weight", "size/bits_per_weight", "{:.3f}"),
    ("compression ratio", "compress/ratio", "{:.3f}"),
    ("artifact, MB", "size/artifact_bytes", "{:.1f}"),
)
NOT_COMPARED = ("tracking", "cache", "sweep", "plan")
# all that a run's config.yaml may have constructed
OWN_TASK = re.compile(r"slimrun\.evaluation\.task\.[a-z_]+\.[A-Za-z]+")
DONE, WRONG = 0, 2


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    folder: Path
    results: dict[str, Any]
    config: Any  # DictConfig of its config.yaml
    outputs: dict[str, Outputs]  # task -> per-item arrays of the quantized model

    def signatures(self) -> dict[str, str]:
        """Task -> how its score came about."""
        return {key.partition("/")[0]: text for key, text in self.results.items() if key.endswith("/signature")}


def main() -> None:
    """Exit status 0 done, 2 the runs cannot be compared (one line on stderr)."""
    print_anything()
    parser = argparse.ArgumentParser(prog="slimrun-compare", description=__doc__)
    for name in ("run_a", "run_b"):
        parser.add_argument(name, type=Path, metavar=name.upper(), help="output folder of a finished run")
    arguments = parser.parse_args()
    try:
        show(read(arguments.run_a), read(arguments.run_b))
    except ValueError as error:
        print(f"slimrun-compare: {error}", file=sys.stderr)
        sys.exit(WRONG)
    except Exception as error:  # files that are damaged in a way that has no name
        folders = f"{arguments.run_a} or {arguments.run_b}"
        print(f"slimrun-compare: {folders} is damaged ({type(error).__name__}: {_line(error)})", file=sys.stderr)
        sys.exit(WRONG)
    sys.exit(DONE)


def read(folder: Path) -> Run:
    """The run of an output folder; ValueError when it is none, failed, or lacks what pairing needs."""
    file, config_file = folder / RESULTS, folder / "config.yaml"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        config = OmegaConf.load(config_file)
    except Exception as error:  # a damaged file raises whatever its reader trips over
        raise ValueError(f"{folder} is no output folder of a finished run ({_line(error)})") from error
    if not isinstance(results, dict):
        raise ValueError(f"{file} is damaged: it holds no JSON object; run it again")
    if not isinstance(config, DictConfig) or "${" in config_file.read_text(encoding="utf-8"):
        raise ValueError(f"{config_file} is not what a run writes: keys with plain values; run it again")
    if results.get("status") != "ok":
        raise ValueError(f"{folder} holds a run that failed: {results.get('error', 'no reason recorded')}")
    return Run(folder, results, config, read_outputs(folder / OUTPUTS))


def show(a: Run, b: Run) -> None:
    """Print what tells the runs apart, and the table; ValueError when they were not measured alike."""
    table = [*exact_rows(a, b), *(row for name in common_tasks(a, b) for row in rows(name, a, b))]
    print(f"A: {a.folder}\nB: {b.folder}")
    for line in changes(a, b):
        print(f"   {line}")
    print_table("B against A, paired", COLUMNS, table)


def common_tasks(a: Run, b: Run) -> list[str]:
    """Tasks of both runs, in A's order; ValueError names the first thing that was not alike."""
    if a.results["model/fingerprint"] != b.results["model/fingerprint"]:
        raise ValueError(
            f"the runs started from different float models: {a.config.model.name} and {b.config.model.name} "
            "(weights, tokenizer and dtype must be equal); compare runs of one model"
        )
    mine, other = a.signatures(), b.signatures()
    for name in mine.keys() & other.keys():
        if mine[name] != other[name]:
            raise ValueError(f"task {name} was not measured alike: {unlike(mine[name], other[name])}")
    tasks = [name for name in mine if name in other]
    if not tasks:
        raise ValueError(f"no task in common: {', '.join(mine) or 'none'} and {', '.join(other) or 'none'}")
    return tasks


def unlike(mine: str, other: str) -> str:
    """The first field of two signatures that differs."""
    pairs = zip(mine.split("|"), other.split("|"))
    return next((f"{one} in A, {two} in B" for one, two in pairs if one != two), f"{mine} in A, {other} in B")


def changes(a: Run, b: Run) -> list[str]:
    """`key: A -> B` of everything configured differently."""
    mine, other = ({k: v for k, v in flat(run.config).items() if k.split(".")[0] not in NOT_COMPARED} for run in (a, b))
    keys = [key for key in {**mine, **other} if mine.get(key, "-") != other.get(key, "-")]
    return [f"{key}: {mine.get(key, '-')} -> {other.get(key, '-')}" for key in keys]


def exact_rows(a: Run, b: Run) -> list[list[str]]:
    """Sizes: both are known, so is their difference."""
    found = []
    for label, key, form in EXACT:
        one, two = (run.results[key] / (1e6 if key.endswith("_bytes") else 1) for run in (a, b))
        found.append([label, form.format(one), form.format(two), _signed(two - one, form), "", "", ""])
    return found


def rows(name: str, a: Run, b: Run) -> list[list[str]]:
    """A task's scores and, where the runs kept it, the divergence from the float model."""
    task = task_of(a, name)
    report = task.compare(name, a.outputs[name], b.outputs[name])
    found = report.metrics
    if found[f"{name}/signature"] != a.results[f"{name}/signature"]:
        raise ValueError(f"task {name}: its data changed since the runs; put the file back, or run both again")
    score = report.scores[0]  # the one that the task's interval, p-value and verdict are of
    in_percent = f"{name}/delta_pct" in found
    change = float(found[f"{name}/delta_pct"]) if in_percent else score.quant_value - score.float_value
    unit = " %" if in_percent else ""
    low, high = float(found[f"{name}/ci_low"]), float(found[f"{name}/ci_high"])
    table = [
        [
            score.name,
            f"{score.float_value:.4g}",
            f"{score.quant_value:.4g}",
            f"{change:+.4g}{unit}",
            f"{low:+.4g} to {high:+.4g}{unit}",
            f"{float(found[f'{name}/p_value']):.4f}",
            str(found[f"{name}/verdict"]),
        ]
    ]
    if "kl" in a.outputs[name]:
        table.append(divergence_row(name, a.outputs[name]["kl"], b.outputs[name]["kl"]))
    return table


def task_of(run: Run, name: str) -> Task:
    """The task as this run was configured; ValueError, before anything is imported, when it is none of ours."""
    node = run.config.task[name]
    for target in [value for key, value in flat(node).items() if key.rpartition(".")[2] == "_target_"]:
        if not OWN_TASK.fullmatch(str(target)):
            raise ValueError(f"{run.folder / 'config.yaml'}: task.{name}._target_={target} is no task of slimrun")
    task: Task = construct(node, f"task.{name}")
    return task


def divergence_row(name: str, mine: np.ndarray, other: np.ndarray) -> list[str]:
    """KL to the float model [W, T] of both runs, paired by window as the perplexities are."""
    means = [kl.mean(axis=1, dtype=np.float64) for kl in (mine, other)]
    change = statistics.paired_difference(*means)
    interval = f"{change.low:+.4g} to {change.high:+.4g}"
    values = [f"{side.mean():.4g}" for side in means]
    return [f"{name}: KL to float, nats", *values, f"{change.value:+.4g}", interval, f"{change.p_value:.4f}", ""]


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _signed(value: float, form: str) -> str:
    return form.replace("{:", "{:+").format(value)
