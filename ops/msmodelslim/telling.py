"""What a script says on stderr: a bar a stage while it works, and a line at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from torch import Tensor

from slimrun.ops.calibration.base import Layer, Procedure, Progress
from slimrun.ops.compress import entropy_bits


def run(procedure: Procedure) -> list[Layer]:
    """Quantize and calibrate, with a bar for each; the per-layer table."""
    with Bars(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
              console=Console(stderr=True)) as bars:  # fmt: skip
        with _bar(bars, "quantize") as progress:
            procedure.quantize(progress=progress)
        with _bar(bars, "calibrate") as progress:
            return procedure.calibrate(progress)


def quantized(layers: Iterable[Layer], tensors: Mapping[str, Tensor]) -> None:
    """Say how many linears are quantized, how many bits a weight their integers hold, and how many linears are float.

    `tensors` holds the integers as NAME.weight.
    """
    weights = [tensors[f"{layer.name}.weight"].cpu() for layer in layers if layer.quantized]
    numbers = sum(weight.numel() for weight in weights)
    bits = sum(entropy_bits(weight) * weight.numel() for weight in weights) / numbers if numbers else 0.0
    kept = sum(not layer.quantized for layer in layers)
    _say(f"{len(weights)} linears quantized, {numbers:,} weights of {bits:.2f} bits (entropy); {kept} kept float")


def smoothed(norms: Sequence[str]) -> None:
    """Say how many norms took a smoothing."""
    _say(f"{len(norms)} norms smoothed")


def compressed(raw: int, packed: int) -> None:
    """Say what compression took away: bytes of the int8 weights, and of everything that restores them."""
    ratio = f", ratio {raw / packed:.3f}" if packed else ""
    _say(f"{raw:,} bytes of weights are {packed:,} compressed{ratio}")


def not_for_hardware() -> None:
    """Say who cannot read what our codec wrote, and what to do about it."""
    _say(
        "Ascend hardware cannot decode it: the coding is slimrun-nz; CompressConfig(executor=PATH) takes CANN's program"
    )


def _say(line: str) -> None:
    Console(stderr=True, soft_wrap=True).print(line, highlight=False)


@contextmanager
def _bar(bars: Bars, stage: str) -> Iterator[Progress]:
    task = bars.add_task(stage, total=None)

    def progress(done: int, total: int, part: str = "") -> None:
        name = f"{stage}, {part}" if part else stage
        bars.update(task, completed=done, total=total, description=name)

    yield progress
    if bars.tasks[task].total is None:
        bars.update(task, total=1, completed=1)
