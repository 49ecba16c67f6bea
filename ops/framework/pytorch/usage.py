"""What a torch model does with its linears beside calling them: those cannot be replaced by quantized ones.

Mamba's dt_proj and the output projection of nn.MultiheadAttention are such: the model multiplies with their weights
itself, and nobody asks the module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ops.framework.calibrator import OTHER_INPUTS, OTHER_PRODUCT, WEIGHT_READ

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@contextmanager
def watched_use(linears: Mapping[str, nn.Linear]) -> Iterator[dict[str, str]]:
    """Fills the dictionary, while the model runs, with the linears that cannot be replaced, and why."""
    found = {
        name: WEIGHT_READ for name, linear in linears.items() if isinstance(linear, NonDynamicallyQuantizableLinear)
    }
    with ExitStack() as stack:
        for name, linear in linears.items():
            stack.enter_context(_watched(linear, partial(found.setdefault, name)))
        yield found


@contextmanager
def _watched(linear: nn.Linear, say: Any) -> Iterator[None]:
    """Meanwhile `say` is told how the linear is used otherwise than by `linear(x)`."""
    kind: Any = type(linear)
    own = type(linear).forward is nn.Linear.forward and ("forward" not in vars(linear) or hasattr(linear, "_hf_hook"))
    calls = 0  # of the linear that are under way

    def weight(module: nn.Module) -> Any:
        if not calls:
            say(WEIGHT_READ)
        return super(kind_with_weight, module).__getattr__("weight")

    def enter(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if named or len(given) != 1:
            say(OTHER_INPUTS)

    def leave(module: nn.Linear, given: tuple[Any, ...], _: dict[str, Any], out: Any) -> None:
        nonlocal calls
        if not own and out is not None and len(given) == 1 and not _is_product(module, given[0], out):
            say(OTHER_PRODUCT)
        calls -= 1

    handles = [
        linear.register_forward_pre_hook(enter, with_kwargs=True),
        linear.register_forward_hook(leave, with_kwargs=True, always_call=True),
    ]
    kind_with_weight: Any = type(kind.__name__, (kind,), {"weight": property(weight)})
    if "weight" in linear._parameters:  # else it is computed (weight norm, parametrizations)
        linear.__class__ = kind_with_weight
    try:
        yield
    finally:
        linear.__class__ = kind
        for handle in handles:
            handle.remove()


def _is_product(linear: nn.Linear, x: Tensor, out: Any) -> bool:
    expected = nn.functional.linear(x, linear.weight, linear.bias)
    tolerance = TOLERANCE.get(expected.dtype, 1e-1)
    return (
        isinstance(out, Tensor)
        and out.shape == expected.shape
        and bool((out - expected).abs().max() <= tolerance * expected.abs().max())
    )
