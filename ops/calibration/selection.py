"""Which linears of a model a method gets, and how what happened to several of them is told in one line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slimrun.ops.format.linear import FLOAT
from slimrun.ops.quant.base import Quantizer

from .base import Layer, Network
from .ranges import BARELY_REACHED, UNREACHED

HEAVIEST = "kept float, because its inputs are among the heaviest (fallback_level)"


@dataclass(frozen=True)
class Selection:
    """The linears to quantize, in module order, in the table of all of them."""

    layers: dict[str, Layer]
    names: list[str]
    notes: list[str]  # on those that the method covers but cannot have


def select(network: Network, quantizer: Quantizer, run: Callable[[], Any] | None) -> Selection:
    """The linears that the method covers and the model does nothing else with than call them, while `run` runs it.

    ValueError when there is none.
    """
    shapes, kept = network.linears(), network.kept()
    layers = {name: Layer(name, shape, quantized=False, note=kept.get(name, "")) for name, shape in shapes.items()}
    if quantizer.quant_type == FLOAT:
        return Selection(layers, [], [])
    covered = [name for name in quantizer.covered(list(shapes)) if name not in kept]
    apart = network.used_otherwise(covered, run) if run else {}
    for name, reason in apart.items():
        layers[name].note = f"kept float, because {reason}"
    notes = grouped(layers[name] for name in covered if name in apart)
    if len(apart) == len(covered):
        raise ValueError(f"the model has nothing to quantize: {'; '.join(notes)}")
    names = [name for name in covered if name not in apart]
    if quantizer.fallback_level >= len(names):
        raise ValueError(
            f"fallback_level={quantizer.fallback_level} leaves nothing to quantize: of {len(shapes)} linear layers "
            f"{len(names)} can be; allowed: 0 to {len(names) - 1}, or take quant=none"
        )
    return Selection(layers, names, notes)


def keep_heaviest(layers: Mapping[str, Layer], names: Sequence[str], quantizer: Quantizer) -> list[str]:
    """The first `fallback_level` linears in the method's ranking, in module order on ties; their notes say so."""
    ranked = sorted(names, key=lambda name: -float(getattr(layers[name], quantizer.ranks_by)))
    kept = ranked[: quantizer.fallback_level]
    for name in kept:
        layers[name].note = HEAVIEST
    return kept


def check_float(network: Network, quantizer: Quantizer) -> None:
    """ValueError when the method would quantize what is quantized already."""
    if quantizer.quant_type != FLOAT and (done := network.quantized()):
        raise ValueError(
            f"the model is quantized already: {several(done)}; load the float model anew, or take quant=none"
        )


def calibration_notes(layers: Mapping[str, Layer], raised: Mapping[str, int]) -> list[str]:
    """What calibrating has found, `raised` being how many rows of a linear got a larger step: its layer says so."""
    notes = grouped(layer for layer in layers.values() if layer.note.endswith((UNREACHED, BARELY_REACHED)))
    # without a grid of its inputs a linear has no bias in int32
    raised = {name: rows for name, rows in raised.items() if layers[name].quantized and not layers[name].float_inputs}
    for name, rows in raised.items():
        layers[name].note = f"a larger step in {rows} rows, so that int32 holds their bias"
    if raised:
        count = sum(raised.values())
        notes.append(f"{several(raised)}: a larger step in {count} rows, so that int32 holds their bias")
    return notes


def grouped(layers: Iterable[Layer]) -> list[str]:
    """A line for each note, with the layers that have it."""
    by_note: dict[str, list[str]] = {}
    for layer in layers:
        by_note.setdefault(layer.note, []).append(layer.name)
    return [f"{several(names)}: {note}" for note, names in by_note.items()]


def several(names: Collection[str]) -> str:
    """How many linears, and the first of them."""
    first = ", ".join([*names][:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} linear{'s' if len(names) > 1 else ''} ({first})"
