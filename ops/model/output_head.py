"""Whether logits are simply the output layer applied to the last hidden states, seen before any weight is loaded.

The model's own code runs on the meta device, with its base model replaced by one that gives hidden states at once: what
is computed outside the output layer is what scales or caps logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slimrun.ops.errors import Unavailable
from slimrun.ops.format.linear import QuantizedLinear

# what changes no number: selecting, reshaping, casting
HARMLESS = {
    *("slice", "select", "index", "split", "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "t"),
    *(
        "transpose",
        "permute",
        "contiguous",
        "clone",
        "alias",
        "detach",
        "as_strided",
        "_to_copy",
        "lift_fresh",
        "arange",
    ),
}
SCALES = {"mul", "div"}  # harmless by 1


def check_head(module: Any, name: str) -> None:
    """Unavailable when the model of the config changes its logits; says nothing when its code cannot run like this."""
    base, head = module.base_model, output_layer(module)
    if base is module:
        kind = type(module).__name__
        raise Unavailable(f"model={name}: {kind} has no base model apart from its output layer; this is not supported")
    if not isinstance(head, nn.Linear):
        return
    weight = head.weight
    states = torch.empty(1, 4, head.in_features, dtype=weight.dtype, device=weight.device)
    outside = _Outside()
    handles = [
        head.register_forward_pre_hook(lambda *_: setattr(outside, "inside", True)),
        head.register_forward_hook(lambda *_: setattr(outside, "inside", False)),
    ]

    def give(*_: Any, **__: Any) -> _States:
        outside.inside = False
        return _States(states)

    base.forward = give
    try:
        with torch.no_grad(), outside:
            module(input_ids=torch.ones(1, 4, dtype=torch.long, device=weight.device), use_cache=False)
    except Exception:  # the model's own code may want real numbers or more of its base: it is asked again when loaded
        return
    finally:
        del base.forward
        for handle in handles:
            handle.remove()
    if outside.operations:
        config = [item for item in module.config.to_dict().items() if "logit" in item[0] and "attn" not in item[0]]
        told = ", ".join(f"{key}={value}" for key, value in config if isinstance(value, float) and value)
        raise Unavailable(
            f"model={name}: {type(module).__name__} changes its logits after the output layer"
            f" ({told or ', '.join(outside.operations)}); this is not supported"
        )


def output_layer(module: Any) -> Any:
    """The output layer: what the model calls so, else its last linear (custom code rarely says)."""
    named = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    if named is not None:
        return named
    linears = [child for child in module.modules() if isinstance(child, nn.Linear | QuantizedLinear)]
    if not linears:
        raise ValueError(f"{type(module).__name__} has no linear that could be its output layer")
    return linears[-1]


class _Outside(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch brings no types for it
    """Notes the operations outside the output layer that change numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside = True  # until the base model has given its states
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = func.overloadpacket.__name__.rstrip("_")
        floats = any(isinstance(value, Tensor) and value.is_floating_point() for value in args)
        by_one = kind in SCALES and any(value == 1 for value in args[1:] if not isinstance(value, Tensor))
        if floats and not self.inside and kind not in HARMLESS and not by_one and kind not in self.operations:
            self.operations.append(kind)
        return func(*args, **(kwargs or {}))


class _States:
    """What a base model gives: hidden states first, and nothing else."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, place: Any) -> Any:
        return self.last_hidden_state if place == 0 else ()
