"""A bundle becomes a running torch model again, from nothing but its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimrun.ops import bundle
from slimrun.ops.bundle.description import owner
from slimrun.ops.bundle.references import CONFIG
from slimrun.ops.format.linear import Int8Table, restored_linear
from slimrun.ops.framework.opening import open_config, open_generation_config, open_tokenizer, own_code
from slimrun.ops.memory import Room
from slimrun.ops.model.experts import unstack
from slimrun.ops.model.linears import linear_names
from slimrun.ops.model.skeleton import skeleton
from slimrun.ops.model.tables import table_shapes

from .smoothable import add_bias


@dataclass(frozen=True)
class Opened:
    """What the files of a bundle hold, before a weight is decoded."""

    stored: bundle.Stored
    config: Any
    module: Any  # without weights
    tokenizer: Any


def restore(folder: Path, room: Room, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of a bundle folder, its tensors in `room`.

    ValueError names the file that is damaged or does not fit the others.
    """
    opened = bundle.undisturbed(folder, lambda place: _open(place, trust_remote_code))
    decoded = bundle.decode(opened.stored, _shapes(opened.module, opened.stored.types), room)
    with bundle.named(opened.stored.weights):
        return _filled(opened.module, decoded, opened.stored.weights), opened.tokenizer


def fill(module: Any, folder: Path) -> None:
    """Give a module without weights those of a bundle folder; ValueError names the file that does not fit it."""
    stored = bundle.undisturbed(folder, bundle.open_stored)
    unstack(module, kept=stored.tensors)
    decoded = bundle.decode(stored, _shapes(module, stored.types))
    with bundle.named(stored.weights):
        _filled(module, decoded, stored.weights)


def _open(folder: Path, trust_remote_code: bool) -> Opened:
    stored = bundle.open_stored(folder)
    config = open_config(folder, stored, trust_remote_code)
    tokenizer = open_tokenizer(folder, trust_remote_code)
    generation = open_generation_config(folder)
    with bundle.named(folder / CONFIG), own_code(folder):
        module = skeleton(config, trust_remote_code=trust_remote_code)
        unstack(module, kept=stored.tensors)  # older bundles hold stacks
    if generation is not None:
        module.generation_config = generation
    return Opened(stored, config, module, tokenizer)


def _filled(module: Any, decoded: bundle.Bundle, weights: Path) -> Any:
    """The skeleton with quantized linears and all other tensors in their places."""
    shapes = _shapes(module, decoded.types)
    rest = dict(decoded.tensors)
    for name in decoded.quantized:
        prefix = f"{name}."
        own = {key.removeprefix(prefix): rest.pop(key) for key in decoded.tensors if key.startswith(prefix)}
        try:
            linear = restored_linear(decoded.types[name], own, shapes.get(name))
        except ValueError as error:
            raise bundle.damage(weights, f"{name} {error}") from error
        module.set_submodule(name, linear)
    for key in rest.keys() - module.state_dict().keys():
        module_name, _, suffix = key.rpartition(".")
        if module_name.endswith(".module") and f"{module_name.removesuffix('.module')}.{suffix}" in decoded.tensors:
            del rest[key]  # msModelSlim's files hold a smoothed norm twice
        elif suffix == "bias" and f"{module_name}.weight" in rest:  # smoothing gave it one
            add_bias(module.get_submodule(module_name), rest.pop(key))
    for key, source in module.all_tied_weights_keys.items():  # a quantized table stands in all its places
        place, table = owner(key), owner(source)
        if table in decoded.quantized and key not in decoded.tensors:
            module.set_submodule(place, module.get_submodule(table))
    unexpected = module.load_state_dict(rest, strict=False, assign=True).unexpected_keys
    tied = module.all_tied_weights_keys  # a quantized output layer is no longer the embeddings
    module.all_tied_weights_keys = {
        key: source
        for key, source in tied.items()
        if key not in decoded.tensors and owner(source) not in decoded.quantized
    }
    module.tie_weights(recompute_mapping=False)
    missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if missing or unexpected:
        raise bundle.damage(
            weights, f"does not fit {CONFIG}: missing {missing[:3]}, unexpected {sorted(unexpected)[:3]}"
        )
    return module


def _shapes(module: Any, types: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Name -> shape of what may be quantized, by the types of what is."""
    return linear_names(module) | table_shapes(module, types, Int8Table.quant_type)
