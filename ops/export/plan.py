"""Which format each linear of a bundle gets in a target's files, and what that changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slimrun.ops.format.linear import FLOAT, FORMATS, DynamicInt8Linear, WeightOnlyLinear

from .source import EXPERT, Source

FUSED = (  # what engines run as one product
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
)
STATIC = {kind.quant_type for kind in FORMATS.values() if kind.has_grid}
WEIGHTS_ALONE, DYNAMIC = WeightOnlyLinear.quant_type, DynamicInt8Linear.quant_type
HEADS = ("lm_head", "embed_out", "output_layer")  # what models call their output layer
SHOWN = 3  # names in a line
NOT_THERE = "{} is not written there"
SPLIT = "linears that share an input must have one type and one grid"
ONE_TYPE = "the experts of a layer must have one type"
TOKEN_STEP = "experts take their inputs with a step a token there"


@dataclass(frozen=True)
class Change:
    """One thing that the target's files have otherwise than the bundle."""

    what: str
    where: str
    why: str


@dataclass(frozen=True)
class Abilities:
    """What an engine can hold."""

    formats: Mapping[str, str]  # a bundle's format -> what it is called there; a linear of any other becomes FLOAT
    fuses: bool = True  # linears that share an input are one product there
    quantizes_head: bool = False
    shifted_norms: bool = False  # a bias of norms that have none in the float model
    mixes_inputs: bool = True  # static grids beside inputs without one
    mixtures: tuple[str, ...] = ()  # model_type of those whose experts it finds by their names
    experts: tuple[str, ...] = ()  # which of `formats` they can have
    absorbed: tuple[str, ...] = ()  # linears that are multiplied into others there, so they are float


def planned(source: Source, engine: Abilities) -> tuple[dict[str, str], list[Change]]:
    """(the format of each quantized linear in the engine's files, or FLOAT; what that changes)."""
    plan: dict[str, str] = {}
    reasons: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for group in groups(source, engine.fuses):
        child = group[0].rpartition(".")[2]
        kind, reason = _of_experts(source, group, engine) if EXPERT.match(group[0]) else _common(source, group)
        if kind is None:
            plan |= {name: source.types[name] for name in group}
            continue
        if kind != FLOAT and not engine.quantizes_head and child in HEADS:
            kind, reason = FLOAT, "the output layer is float there"
        if kind != FLOAT and child in engine.absorbed:
            kind, reason = FLOAT, "attention takes its floats into other products there"
        if kind not in engine.formats:
            kind, reason = FLOAT, NOT_THERE.format(kind) if kind != FLOAT else reason
        for name in group:
            if name in source.types:
                plan[name] = kind
                if kind != source.types[name]:
                    reasons[source.types[name], kind, reason].append(name)
    if not engine.mixes_inputs and set(plan.values()) & STATIC:
        for name in [name for name, kind in plan.items() if kind not in STATIC | {FLOAT}]:
            reasons[plan[name], FLOAT, f"{plan[name]} is not known there beside static inputs"].append(name)
            plan[name] = FLOAT
    changes = [Change(f"{old} -> {new}", listed(names), reason) for (old, new, reason), names in reasons.items()]
    return {name: engine.formats.get(plan[name], FLOAT) for name in source.types}, changes


def groups(source: Source, fused: bool = True) -> list[list[str]]:
    """All linears, those together that engines run as one product; float ones in such a group too.

    They are the experts of a layer and, if `fused`, linears that share an input.
    """
    known = [*source.types, *(key.removesuffix(".weight") for key in source.floats if key.endswith(".weight"))]
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in known:
        parent, _, child = name.rpartition(".")
        expert = EXPERT.match(name)
        shared = next((group[0] for group in FUSED if fused and child in group), None)
        if expert is not None:
            members[expert[1], ""].append(name)
        elif shared is not None or name in source.types:
            members[parent, shared or child].append(name)
    return list(members.values())


def _common(source: Source, group: Sequence[str]) -> tuple[str, str]:
    """The format that all linears of a group can have, and why it is not what they have."""
    kinds = {source.types.get(name, FLOAT) for name in group}
    if len(kinds) == 1 and len({source.grid(name) for name in group if name in source.types}) <= 1:
        return kinds.pop(), ""
    return FLOAT if FLOAT in kinds else WEIGHTS_ALONE, SPLIT


def _of_experts(source: Source, group: Sequence[str], engine: Abilities) -> tuple[str | None, str]:
    """The format that all experts of a layer can have there, None where each keeps its own, and the reason."""
    kinds = {source.types.get(name, FLOAT) for name in group}
    if FLOAT in kinds:
        return FLOAT, ONE_TYPE
    there = {engine.formats.get(kind) for kind in kinds}
    if kinds <= set(engine.experts) and len(there) == 1 and None not in there:
        return None, ""
    if kinds != {WEIGHTS_ALONE} and DYNAMIC in engine.experts:
        return DYNAMIC, TOKEN_STEP
    return FLOAT, f"{WEIGHTS_ALONE} is not written there for experts"


def listed(names: Sequence[str]) -> str:
    """Some names and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
