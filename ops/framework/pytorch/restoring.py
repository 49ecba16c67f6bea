"""A bundle becomes a running torch model again, from nothing but its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from slimrun.ops import bundle
from slimrun.ops.bundle.references import CONFIG, check_references
from slimrun.ops.compress.base import Limited
from slimrun.ops.format.linear import restored_linear

from .network import add_bias, linear_names
from .skeleton import shapes_of, skeleton

MOST_UNSTORED = 1000  # parameters that no file holds: tied ones
TOKENIZER, GENERATION = "tokenizer.json", "generation_config.json"


@dataclass(frozen=True)
class Opened:
    """What the files of a bundle hold, before a weight is decoded."""

    stored: bundle.Stored
    config: Any
    module: Any  # without weights
    tokenizer: Any


def restore(folder: Path, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of a bundle folder; ValueError names the file that is damaged or does not fit the others."""
    opened = bundle.undisturbed(folder, lambda place: _open(place, trust_remote_code))
    decoded = bundle.decode(opened.stored, linear_names(opened.module))
    with bundle.named(opened.stored.weights):
        return _filled(opened.module, decoded, opened.stored.weights), opened.tokenizer


def open_config(folder: Path, stored: bundle.Stored, trust_remote_code: bool = False) -> Any:
    """The transformers config of a bundle, held against what its weight file has before anything is allocated."""
    file = folder / CONFIG
    check_references(folder, trust_remote_code)
    with bundle.named(file), _own_code(folder):
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=not trust_remote_code
        )
    if not trust_remote_code:  # other people's code may not build without memory, and is trusted anyway
        with bundle.named(file), _own_code(folder):
            shapes = shapes_of(config, MOST_UNSTORED + 2 * (len(stored.tensors) + len(stored.coded)))
        size = stored.weights.stat().st_size
        if shapes.computed_bytes > max(Limited.FLOOR, Limited.FACTOR * size):
            raise bundle.damage(file, f"asks for {shapes.computed_bytes} bytes of tables beside {size} of weights")
        _check_tensors(stored, shapes.stored)
    return config


def open_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a bundle; ValueError when it does not load."""
    file = folder / TOKENIZER
    with bundle.named(file if file.exists() else folder), _own_code(folder):
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=not trust_remote_code
        )


def open_generation_config(folder: Path) -> Any:
    """The generation config of a bundle, None when it has none."""
    file = folder / GENERATION
    if not file.is_file():
        return None
    with bundle.named(file):
        return transformers.GenerationConfig.from_pretrained(folder)


def _open(folder: Path, trust_remote_code: bool) -> Opened:
    stored = bundle.open_stored(folder)
    config = open_config(folder, stored, trust_remote_code)
    tokenizer = open_tokenizer(folder, trust_remote_code)
    generation = open_generation_config(folder)
    with bundle.named(folder / CONFIG), _own_code(folder):
        module = skeleton(config, trust_remote_code=trust_remote_code)
    if generation is not None:
        module.generation_config = generation
    return Opened(stored, config, module, tokenizer)


def _check_tensors(stored: bundle.Stored, expected: Mapping[str, Tensor]) -> None:
    """ValueError names the first float tensor whose shape or kind is not that of the config's model."""
    for key, tensor in stored.tensors.items():
        if key.rpartition(".")[0] in stored.coded or key not in expected:
            continue
        if tensor.shape != expected[key].shape or tensor.is_floating_point() != expected[key].is_floating_point():
            said = f"{tensor.dtype} {list(tensor.shape)}, the model of {CONFIG} has {list(expected[key].shape)}"
            raise bundle.damage(stored.weights, f"{key} is {said}")


def _filled(module: Any, decoded: bundle.Bundle, weights: Path) -> Any:
    """The skeleton with quantized linears and all other tensors in their places."""
    shapes = linear_names(module)
    rest = dict(decoded.tensors)
    for name in decoded.quantized:
        prefix = f"{name}."
        own = {key.removeprefix(prefix): rest.pop(key) for key in decoded.tensors if key.startswith(prefix)}
        try:
            linear = restored_linear(decoded.types[name], own, shapes.get(name))
        except ValueError as error:
            raise bundle.damage(weights, f"{name} {error}") from error
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, linear)
    for key in rest.keys() - module.state_dict().keys():
        owner, _, suffix = key.rpartition(".")
        if owner.endswith(".module") and f"{owner.removesuffix('.module')}.{suffix}" in decoded.tensors:
            del rest[key]  # msModelSlim's files hold a smoothed norm twice
        elif suffix == "bias" and f"{owner}.weight" in rest:  # smoothing gave it one
            add_bias(module.get_submodule(owner), rest.pop(key))
    unexpected = module.load_state_dict(rest, strict=False, assign=True).unexpected_keys
    tied = module.all_tied_weights_keys  # a quantized output layer is no longer the embeddings
    module.all_tied_weights_keys = {key: source for key, source in tied.items() if key not in decoded.tensors}
    module.tie_weights(recompute_mapping=False)
    missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if missing or unexpected:
        raise bundle.damage(
            weights, f"does not fit {CONFIG}: missing {missing[:3]}, unexpected {sorted(unexpected)[:3]}"
        )
    return module


@contextmanager
def _own_code(folder: Path) -> Iterator[None]:
    """transformers' refusal to run what the folder brings, with what to do about it here."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(f"{folder} brings its own code: give trust_remote_code=True if you trust it") from error
