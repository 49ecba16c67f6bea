"""What a torch model does with its linears beside calling them: those cannot be replaced by quantized ones.

Mamba's dt_proj and the output projection of nn.MultiheadAttention are such: the model multiplies with their weights
itself, and nobody asks the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from slimrun.ops.calibration.base import OTHER_INPUTS, OTHER_PRODUCT, WEIGHT_READ

OWN = (nn.Linear.forward, nn.Embedding.forward)  # which compute nothing else
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@contextmanager
def watched_use(linears: Mapping[str, nn.Linear | nn.Embedding]) -> Iterator[dict[str, str]]:
    """Fills the dictionary, while the model runs, with the linears and tables that cannot be replaced, and why."""
    reasons = {
        name: WEIGHT_READ for name, linear in linears.items() if isinstance(linear, NonDynamicallyQuantizableLinear)
    }
    with ExitStack() as stack:
        for name, linear in linears.items():
            stack.enter_context(_watched(linear, partial(reasons.setdefault, name)))
        yield reasons


@contextmanager
def _watched(linear: nn.Linear | nn.Embedding, say: Callable[[str], object]) -> Iterator[None]:
    """Meanwhile `say` is told how the linear is used otherwise than by `linear(x)`.

    By another class, because torch's encoder layers compute otherwise while there are hooks.
    """
    kind: Any = type(linear)
    own = kind.forward in OWN and ("forward" not in vars(linear) or hasattr(linear, "_hf_hook"))
    calls = 0  # of the linear that are under way

    class Watched(kind):  # type: ignore[misc]
        def __call__(self, *given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            try:
                out = super().__call__(*given, **named)
                if named or len(given) != 1:
                    say(OTHER_INPUTS)
                elif not own and not _is_product(self, given[0], out):
                    say(OTHER_PRODUCT)
            finally:
                calls -= 1
            return out

        def __getattribute__(self, name: str) -> Any:
            if name == "weight" and not calls:
                say(WEIGHT_READ)
            return super().__getattribute__(name)

    linear.__class__ = Watched
    try:
        yield
    finally:
        linear.__class__ = kind


def _is_product(linear: nn.Linear, x: Tensor, out: Any) -> bool:
    expected = nn.functional.linear(x, linear.weight, linear.bias)
    tolerance = TOLERANCE.get(expected.dtype, 1e-1)
    return (
        isinstance(out, Tensor)
        and out.shape == expected.shape
        and bool((out - expected).abs().max() <= tolerance * expected.abs().max())
    )
