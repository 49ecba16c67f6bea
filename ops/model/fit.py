"""Whether weights are a model's: asked of transformers' own loader, which renames, fuses, ties and may ignore some."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor

from slimrun.ops.errors import Unavailable
from slimrun.ops.weights.misfit import GIVE_FLOAT, Misfit, holes


def check_weights(module: Any, config: Any, stored: Mapping[str, Tensor], source: str) -> None:
    """Unavailable unless these tensors on the meta device load into the model: its loader does it, without numbers."""
    try:
        with quiet():
            _, report = type(module).from_pretrained(
                None,
                config=config,
                state_dict=dict(stored),
                device_map={"": "meta"},
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # of the model's own code, or a conversion that wants numbers: the loading itself tells
        if lost := conversion_misfit(error, stored):
            raise Unavailable(_told(lost, module, stored, source)) from error
        return
    misfit = misfit_of(report, module)
    if misfit:
        raise Unavailable(_told(misfit, module, stored, source))
    for name, tensor in stored.items():
        own = module.state_dict().get(name) if tensor.dtype in (torch.int8, torch.uint8) else None
        if own is not None and own.is_floating_point():
            raise Unavailable(f"{source}: {name} holds whole numbers; it looks quantized already: {GIVE_FLOAT}")


def check_loaded(module: Any, report: Mapping[str, Any], source: str) -> None:
    """ValueError when the loader reports that it gave the model other weights than its own."""
    if misfit := misfit_of(report, module):
        raise ValueError(_told(misfit, module, {}, source))


def misfit_of(report: Mapping[str, Any], module: Any) -> Misfit:
    """Of what `from_pretrained(output_loading_info=True)` reports.

    transformers has taken out what the model declares that it may ignore. What a file holds of buffers that the model
    computes itself (older files have `inv_freq`, masks and positions) is no weight either.
    """
    order = {name: place for place, name in enumerate(module.state_dict())}
    computed = {name for name, _ in module.named_buffers()} - order.keys()
    return Misfit(
        sorted(report["missing_keys"], key=lambda name: order.get(name, 0)),
        sorted(set(report["unexpected_keys"]) - computed, key=_natural),
        sorted((name, tuple(own), tuple(model)) for name, own, model in report["mismatched_keys"]),
    )


def conversion_misfit(error: BaseException, stored: Mapping[str, Tensor]) -> Misfit | None:
    """What a failed conversion lacks: experts are stacked, and one of them misses a tensor that the others have."""
    lost = holes(stored) if "conversion" in str(error) else []
    return Misfit(missing=lost) if lost else None


@contextmanager
def quiet() -> Iterator[None]:
    """Bars, tables and retries of transformers and the hub would fight with the run's display and one-line errors."""
    verbosity, hub = transformers.utils.logging.get_verbosity(), logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        hub.setLevel(level)
        transformers.utils.logging.enable_progress_bar()


def _told(misfit: Misfit, module: Any, stored: Mapping[str, Tensor], source: str) -> str:
    return misfit.told(source, type(module).__name__, stored, module.config.to_dict())


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"\.", name)]
