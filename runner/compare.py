"""`slimrun-compare RUN_A RUN_B`: what run B does differently from run A, paired item by item.

Both runs must have quantized the same float model and measured it alike (equal signatures); then what they kept in
`outputs.npz` is put side by side by the task itself, with A in the float model's place. With `--gate POLICY` the exit
status says whether B passes; of one run alone, whether it passes beside its float model.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from slimrun.evaluation.base import Outputs, Task
from slimrun.evaluation.comparison import Report, Score, corrected
from slimrun.evaluation.gate import Policy, decide
from slimrun.runner import policy
from slimrun.runner.config import construct
from slimrun.runner.display import print_anything
from slimrun.runner.folder import OUTPUTS, RESULTS, SCORES, flat, read_outputs, read_scores
from slimrun.runner.report import run as report
from slimrun.runner.report.table import SIZES, Table, sizes
from slimrun.runner.status import DONE, GATED, WRONG

SIDES = ("A", "B", "B - A")
NOT_COMPARED = ("tracking", "cache", "sweep", "plan", "gate")
# all that a run's config.yaml may have constructed
OWN_TASK = re.compile(r"slimrun\.evaluation\.(task\.[a-z_]+\.[A-Za-z]+|source\.hub\.Hub)")


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    folder: Path
    results: dict[str, Any]
    config: Any  # DictConfig of its config.yaml
    outputs: dict[str, Outputs]  # task -> per-item arrays of the quantized model
    noise: dict[str, float | None]  # score -> how far rounding alone moves the quantized model's

    def signatures(self) -> dict[str, str]:
        """Task -> how its score came about."""
        return {key.partition("/")[0]: text for key, text in self.results.items() if key.endswith("/signature")}


def main() -> None:
    """Exit status 0 done, 2 the runs cannot be compared (one line on stderr), 3 the gate is not passed."""
    print_anything()
    parser = argparse.ArgumentParser(prog="slimrun-compare", description=__doc__)
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="output folder of a finished run")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", nargs="?", help="of another one; may lack with --gate")
    parser.add_argument("--gate", metavar="POLICY", help="a policy (YAML): what has to hold for exit status 0")
    arguments = parser.parse_args()
    if not arguments.run_b and not arguments.gate:
        parser.error("RUN_B is needed, or --gate")
    try:
        gate = policy.read(arguments.gate) if arguments.gate is not None else None
        a = read(arguments.run_a)
        scores = show(a, read(arguments.run_b)) if arguments.run_b else beside_float(a)
    except ValueError as error:
        print(f"slimrun-compare: {error}", file=sys.stderr)
        sys.exit(WRONG)
    except Exception as error:  # files that are damaged in a way that has no name
        folders = " or ".join(str(folder) for folder in (arguments.run_a, arguments.run_b) if folder)
        print(f"slimrun-compare: {folders} is damaged ({type(error).__name__}: {_line(error)})", file=sys.stderr)
        sys.exit(WRONG)
    sys.exit(gated(gate, scores) if gate else DONE)


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
    noise = {score.label: score.noise for score in read_scores(folder / SCORES) or ()}
    return Run(folder, results, config, read_outputs(folder / OUTPUTS), noise)


def show(a: Run, b: Run) -> list[Score]:
    """Print what tells the runs apart, and the table of these rows; ValueError when they were not measured alike."""
    exact, tasks = Table(["size", *SIDES], exact_rows(a, b)), common_tasks(a, b)
    reports = corrected({name: compared(name, a, b) for name in tasks})
    scores = [score for report in reports.values() for score in report.scores]
    print(f"A: {a.folder}\nB: {b.folder}")
    for line in changes(a, b):
        print(f"   {line}")
    report.show("verdicts on B, paired with A", scores, exact, SIDES)
    return scores


def beside_float(run: Run) -> list[Score]:
    """The rows of a run and its float model, printed too."""
    scores = read_scores(run.folder / SCORES)
    if scores is None:
        raise ValueError(f"{run.folder / SCORES} is missing or damaged; run it again")
    report.show(f"{run.folder}", scores, sizes(run.results))
    return scores


def gated(gate: Policy, scores: Sequence[Score]) -> int:
    """Print what the gate says; the exit status."""
    decision = decide(gate, scores)
    report.show_gate(decision)
    return DONE if decision.passed else GATED


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
    rows = []
    for size in SIZES:
        one, two = size.of(a.results), size.of(b.results)
        if one is None or two is None:
            lacking = a.folder if one is None else b.folder
            raise ValueError(f"{lacking} has no {size.key} in its {RESULTS}; run it again")
        signed = size.form.replace("{:", "{:+")
        rows.append([size.label, size.shown(a.results), size.shown(b.results), signed.format(two - one)])
    return rows


def compared(name: str, a: Run, b: Run) -> Report:
    """A task's scores, those of A in the place of the float model's; rounding moves both."""
    report = task_of(a, name).compare(name, a.outputs[name], b.outputs[name])
    if report.metrics[f"{name}/signature"] != a.results[f"{name}/signature"]:
        raise ValueError(f"task {name}: its data changed since the runs; put the file back, or run both again")
    return replace(report, scores=[_with_noise_of(a, score) for score in report.scores])


def _with_noise_of(a: Run, score: Score) -> Score:
    own = a.noise.get(score.label)
    return score if own is None or score.noise is None else replace(score, noise=hypot(own, score.noise))


def task_of(run: Run, name: str) -> Task:
    """The task as this run was configured; ValueError, before anything is imported, when it is none of ours."""
    node = run.config.task[name]
    for target in [value for key, value in flat(node).items() if key.rpartition(".")[2] == "_target_"]:
        if not OWN_TASK.fullmatch(str(target)):
            raise ValueError(f"{run.folder / 'config.yaml'}: task.{name}._target_={target} is no task of slimrun")
    task: Task = construct(node, f"task.{name}")
    return task


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
