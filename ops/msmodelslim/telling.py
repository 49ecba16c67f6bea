"""What a script says on stderr: a bar a stage while it works, and a line at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from slimrun.ops.calibration.base import Calibrator, Progress


def run(calibrator: Calibrator) -> None:
    """Quantize and calibrate; then say how many linears are quantized, and how many stay float."""
    console = Console(stderr=True)
    with Bars(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
              console=console) as bars:  # fmt: skip
        with _bar(bars, "quantize") as progress:
            calibrator.quantize(progress=progress)
        with _bar(bars, "calibrate") as progress:
            layers = calibrator.calibrate(progress)
    quantized = [layer for layer in layers if layer.quantized]
    weights = sum(prod(layer.shape) for layer in quantized)
    kept = len(layers) - len(quantized)
    console.print(f"{len(quantized)} linears quantized, {weights:,} weights; {kept} kept float", highlight=False)


def compressed(raw: int, packed: int) -> None:
    """Say what compression took away: bytes of the int8 weights, and of everything that restores them."""
    ratio = f", ratio {raw / packed:.3f}" if packed else ""
    Console(stderr=True).print(f"{raw:,} bytes of weights are {packed:,} compressed{ratio}", highlight=False)


@contextmanager
def _bar(bars: Bars, stage: str) -> Iterator[Progress]:
    task = bars.add_task(stage, total=None)
    yield lambda done, total: bars.update(task, completed=done, total=total)
    if bars.tasks[task].total is None:
        bars.update(task, total=1, completed=1)
