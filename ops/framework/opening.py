"""What the files of a bundle say of its model, the same in every framework: config, tokenizer, generation config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor

from slimrun.ops import bundle
from slimrun.ops.bundle.references import CONFIG, check_references
from slimrun.ops.compress.base import Limited
from slimrun.ops.model.auto import AutoConfig, AutoTokenizer
from slimrun.ops.model.skeleton import shapes_of

MOST_UNSTORED = 1000  # parameters that no file holds: tied ones
TOKENIZER, GENERATION = "tokenizer.json", "generation_config.json"


def open_config(folder: Path, stored: bundle.Stored, trust_remote_code: bool = False) -> Any:
    """The transformers config of a bundle, held against what its weight file has before anything is allocated."""
    file = folder / CONFIG
    check_references(folder, trust_remote_code)
    with bundle.named(file), own_code(folder):
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=not trust_remote_code
        )
    if not trust_remote_code:  # other people's code may not build without memory, and is trusted anyway
        with bundle.named(file), own_code(folder):
            shapes = shapes_of(config, MOST_UNSTORED + 2 * (len(stored.tensors) + len(stored.coded)))
        size = stored.weights.stat().st_size
        if shapes.computed_bytes > max(Limited.FLOOR, Limited.FACTOR * size):
            raise bundle.damage(file, f"asks for {shapes.computed_bytes} bytes of tables beside {size} of weights")
        _check_tensors(stored, shapes.stored)
    return config


def open_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a bundle; ValueError when it does not load."""
    file = folder / TOKENIZER
    with bundle.named(file if file.exists() else folder), own_code(folder):
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


@contextmanager
def own_code(folder: Path) -> Iterator[None]:
    """transformers' refusal to run what the folder brings, with what to do about it here."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(f"{folder} brings its own code: give trust_remote_code=True if you trust it") from error


def _check_tensors(stored: bundle.Stored, expected: Mapping[str, Tensor]) -> None:
    """ValueError names the first float tensor whose shape or kind is not that of the config's model."""
    for key, tensor in stored.tensors.items():
        if key.rpartition(".")[0] in stored.coded or key not in expected:
            continue
        if tensor.shape != expected[key].shape or tensor.is_floating_point() != expected[key].is_floating_point():
            said = f"{tensor.dtype} {list(tensor.shape)}, the model of {CONFIG} has {list(expected[key].shape)}"
            raise bundle.damage(stored.weights, f"{key} is {said}")
