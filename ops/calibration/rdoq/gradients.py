"""Gradients of a model in little time: none of a parameter that nobody asks for, products in bfloat16 where faster."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slimrun.ops.calibration.wiring import blocks_of
from slimrun.ops.format.arithmetic import QuantizedWeight
from slimrun.ops.format.products import for_products
from slimrun.ops.memory import give_back

GIVE_BACK = 6  # blocks between two returns of memory
KEPT = "_for_products"  # of a module that keeps its weights in the dtype of products: those that it has, by name


@contextmanager
def gradients(
    model: nn.Module, of: Collection[nn.Parameter] = (), *, again: bool = True
) -> Iterator[Sequence[nn.Module]]:
    """Meanwhile graphs are recorded, and of the model's parameters only those of `of` get gradients; gives the blocks.

    Blocks run `again` when their gradients are due, and hooks on what is in them fire again: for a model that runs as a
    whole. Without, or in a model that names no blocks, everything is kept until then; and weights, once they are in the
    dtype of products, until `forget`, for the samples that come through the same part.
    """
    blocks = blocks_of(model) if again else []
    within = {id(module) for block in blocks for module in block.modules()}
    forwards: dict[nn.Module, Callable[..., Any]] = {
        block: partial(
            checkpoint, partial(_block, block.forward, number), use_reentrant=False, preserve_rng_state=False
        )
        for number, block in enumerate(blocks)
    }
    chosen = {id(parameter) for parameter in of}
    for module in model.modules():
        fixed = isinstance(module, RoundedLinear)
        if type(module) is nn.Linear:
            forwards[module] = partial(_forward, module)
            fixed = converted(module.weight) and id(module.weight) not in chosen
        comes = hasattr(module, "_hf_hook")  # its weight, when it runs
        if fixed and not comes and id(module) not in within:
            vars(module)[KEPT] = {}
    # hooks of accelerate call what they wrap by another name; a block as a whole stands before them
    places = {one: "_old_forward" if hasattr(one, "_hf_hook") and one not in blocks else "forward" for one in forwards}
    own = {module: vars(module)[place] for module, place in places.items() if place in vars(module)}
    frozen = [one for one in model.parameters() if one.requires_grad and id(one) not in chosen]
    for module, forward in forwards.items():
        vars(module)[places[module]] = forward
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield blocks
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, place in places.items():
            del vars(module)[place]
        for module, forward in own.items():
            vars(module)[places[module]] = forward
        for module in model.modules():
            vars(module).pop(KEPT, None)
        give_back()


class RoundedLinear(nn.Module):
    """A linear whose weights are integers [n, k] times steps [n, 1]; as floats they exist only while it runs."""

    values: Tensor
    scale: Tensor

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.register_buffer("values", weight.values)
        self.register_buffer("scale", weight.scale.float().reshape(1, -1))

    def product(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """x [..., k] -> [..., n], rows times a factor [n]; the integers are exact in bfloat16."""
        scale = self.scale if factor is None else self.scale * factor
        if converted(x):
            return (nn.functional.linear(for_products(x), kept(self, "values")) * scale).to(x.dtype)
        if x.dtype == torch.float16:  # sums of products with integers would overflow
            return nn.functional.linear(x, (self.values * scale.t()).to(x.dtype))
        return (nn.functional.linear(x, self.values.to(x.dtype)) * scale).to(x.dtype)


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., k] times weight [n, k] transposed, in the dtype of x; of bfloat16 values where that is faster."""
    if converted(x):
        return nn.functional.linear(for_products(x), for_products(weight)).to(x.dtype)
    return nn.functional.linear(x, weight.to(x.dtype))


def multiply_kept(x: Tensor, module: nn.Module, name: str) -> Tensor:
    """x [..., k] times a weight of the module, as `multiply` takes it."""
    return multiply(x, kept(module, name) if converted(x) else getattr(module, name))


def kept(module: nn.Module, name: str) -> Tensor:
    """A weight of the module in the dtype of products; one that it keeps is converted once."""
    weights: dict[str, Tensor] | None = vars(module).get(KEPT)
    if weights is None:
        return for_products(getattr(module, name))
    if name not in weights:
        weights[name] = for_products(getattr(module, name))
    return weights[name]


def forget(model: nn.Module) -> None:
    """Let go of what is `kept`, since all samples have come through."""
    for module in model.modules():
        vars(module).get(KEPT, {}).clear()


def converted(tensor: Tensor) -> bool:
    """Whether it is multiplied in another dtype.

    float16 too on a CPU, where gradients take 10.9 s for 64 tokens of a linear of 4096 that bfloat16 has in 0.016 s.
    """
    return tensor.dtype == torch.float32 or (tensor.dtype == torch.float16 and tensor.device.type == "cpu")


def _block(forward: Callable[..., Any], number: int, *given: Any, **named: Any) -> Any:
    if number % GIVE_BACK == 0:  # inputs that stay lie between what is freed
        give_back()
    return forward(*given, **named)


def _forward(linear: nn.Linear, x: Tensor) -> Tensor:
    out = multiply_kept(x, linear, "weight")
    return out if linear.bias is None else out + linear.bias
