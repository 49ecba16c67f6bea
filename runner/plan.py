"""`plan=true`: what a run would do, from the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.display import print_table
from runner.experiment import Experiment


def show_plan(experiment: Experiment, shapes: Mapping[str, tuple[int, int]], overrides: Sequence[str]) -> None:
    """Print what would be read, quantized, kept float and evaluated."""
    ignored = experiment.quant.ignored(list(shapes))
    quantizes = experiment.quant.quant_type != "FLOAT"
    selected = {name: shape for name, shape in shapes.items() if quantizes and name not in ignored}
    weights = sum(rows * columns for rows, columns in selected.values())
    falling_back = min(experiment.quant.fallback_level, len(selected))
    rows = [
        [
            "model",
            f"{experiment.model.name} ({experiment.model.source} {experiment.model.path or ''})".replace(" )", ")"),
        ],
        ["quantize", f"{len(selected) - falling_back} linears of {len(shapes)} as {experiment.quant.quant_type}"],
        ["keep float", f"{len(shapes) - len(selected) + falling_back}: {', '.join(sorted(ignored)[:4])}"],
        ["weights covered", f"{weights:,}"],
        ["int8 size", f"{weights / 1e6:.1f} MB before compression"],
        ["compression", type(experiment.compress).__name__],
        [
            "calibration",
            f"{len(experiment.calibration.texts())} prompts of at most {experiment.calibration.length} tokens",
        ],
        ["tasks", ", ".join(experiment.task)],
        ["device", experiment.device.name],
    ]
    print_table(" ".join(["plan:", "slimrun", *overrides]), ["", "value"], rows)
