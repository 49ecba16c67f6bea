"""Which scales a model's weights can take: decided by what the model computes, not by the names of its parts.

A fold divides what one module makes by a scale and multiplies the columns of the linears that read it. With powers of
two as scale nothing is rounded, so that a fold that holds leaves every bit, and one that does not changes much. It is
tried on the smallest block that holds producer and readers, in float32 whatever the model is in, on what the block is
given while the model runs; the model's own weights are never touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from slimrun.ops.calibration.wiring import Fold, common_path

TOLERANCE = 1e-5  # of a number, and of the mean magnitude around it: sums in another order, never another function
NORM_REACH = 2  # largest exponent of a scale: with an offset more would be rounded
LINEAR_REACH = 8  # of linears that make the input: a clamp between them must show


@torch.no_grad()
def folds_that_hold(
    model: nn.Module, candidates: Sequence[Sequence[Fold]], run: Callable[[], Any]
) -> list[Fold | None]:
    """The first of each candidate's folds, which share a block, that changes nothing while `run` runs the model once.

    None where there is no such fold, where the parts also run outside their block, or share weights with others.
    """
    holding: list[Fold | None] = [None] * len(candidates)
    blocks: dict[str, list[int]] = {}
    for index, folds in enumerate(candidates):
        blocks.setdefault(block_of(model, folds[0]), []).append(index)
    running: Counter[str] = Counter()
    outside: set[int] = set()
    probing: list[str] = []
    handles = []

    def enter(name: str, block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        running[name] += 1
        if not probing and name in blocks:
            probing.append(name)
            try:
                tried = Block(model, name, given, named)
                for index in blocks.pop(name):
                    holding[index] = next(filter(tried.keeps, candidates[index]), None)
            finally:
                probing.clear()

    def leave(name: str, *_: object) -> None:
        running[name] -= 1

    def called(name: str, index: int, *_: object) -> None:
        if not running[name]:
            outside.add(index)

    for name, indices in blocks.items():
        block = model.get_submodule(name)
        handles.append(block.register_forward_pre_hook(partial(enter, name), with_kwargs=True))
        handles.append(block.register_forward_hook(partial(leave, name), always_call=True))
        for index in indices:
            parts = {part for fold in candidates[index] for part in (fold.producer, *fold.readers)}
            handles += [
                model.get_submodule(part).register_forward_pre_hook(partial(called, name, index)) for part in parts
            ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [None if index in outside else fold for index, fold in enumerate(holding)]


def block_of(model: nn.Module, fold: Fold) -> str:
    """The name of the smallest module with a forward of its own that holds producer and readers."""
    shared = common_path((fold.producer, *fold.readers))
    while shared and type(model.get_submodule(".".join(shared))).forward is nn.Module.forward:
        shared.pop()  # lists of modules are never called
    return ".".join(shared)


class Block:
    """A block of a model, and what it was given."""

    def __init__(self, model: nn.Module, name: str, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self.model = model
        self.module = model.get_submodule(name)
        self.given = given, dict(named)
        self._state: dict[str, Tensor] = {}  # of half precision weights
        self._names: dict[int, str] = {}  # where a tensor lies -> its first name here
        for key, tensor in [*self.module.named_parameters(), *self.module.named_buffers()]:
            self._names.setdefault(tensor.data_ptr(), key)
            if tensor.dtype in (torch.float16, torch.bfloat16):
                self._state[key] = tensor.float()
        inside = {id(module) for module in self.module.modules()}
        self._elsewhere = {  # weights that modules outside have too
            parameter.data_ptr()
            for module in model.modules()
            if id(module) not in inside
            for parameter in module.parameters(recurse=False)
        }
        self._before: dict[tuple[str, ...], list[Tensor]] = {}

    def keeps(self, fold: Fold) -> bool:
        """Whether readers and block give the same with a scale folded in."""
        try:
            weights = self._folded(fold)
            if not weights:
                return False
            if fold.readers not in self._before:
                self._before[fold.readers] = self._outputs(fold.readers, {})
            before, after = self._before[fold.readers], self._outputs(fold.readers, weights)
        except Exception:  # the code of a model raises anything when something is not as it expects
            return False
        return len(before) == len(after) and all(map(_alike, before, after))

    def _folded(self, fold: Fold) -> dict[str, Tensor]:
        """Name in the block -> weight or bias with a scale folded in; empty if one of them belongs to others too."""
        producer = self.model.get_submodule(fold.producer)
        rows = self._weight(producer, "weight").shape[0]
        reach = LINEAR_REACH if isinstance(producer, nn.Linear) else NORM_REACH
        generator = torch.Generator().manual_seed(0)
        exponents = torch.randint(1, reach + 1, (rows,), generator=generator)
        signs = torch.randint(0, 2, (rows,), generator=generator) * 2 - 1
        scale = torch.exp2((exponents * signs).float())[fold.of]
        changed = [(producer, key, fold.by_row(scale, rows)) for key in ("weight", "bias")]
        changed += [(self.model.get_submodule(name), "weight", scale) for name in fold.readers]
        folded: dict[str, Tensor] = {}
        for module, key, by in changed:
            own = getattr(module, key, None)
            if own is None:
                continue
            if own.data_ptr() in self._elsewhere:
                return {}
            weight, by = self._weight(module, key), by.to(own.device)
            if module is producer:
                offset = fold.offset if key == "weight" else 0.0
                weight = (weight + offset) / by.reshape(-1, *[1] * (weight.ndim - 1)) - offset
            else:
                weight = weight * by
            folded[self._names[own.data_ptr()]] = weight
        return folded

    def _weight(self, module: nn.Module, key: str) -> Tensor:
        own: Tensor = getattr(module, key).detach()
        return self._state.get(self._names[own.data_ptr()], own)

    def _outputs(self, readers: Sequence[str], weights: Mapping[str, Tensor]) -> list[Tensor]:
        """What the readers and the block give with other weights."""
        outputs: list[Tensor] = []
        handles = [
            self.model.get_submodule(name).register_forward_hook(
                lambda _, __, out: outputs.append(out.detach().clone())
            )
            for name in readers
        ]
        try:
            given, named = _in_float32(self.given)  # anew: what is given may be changed
            out = functional_call(self.module, {**self._state, **weights}, given, named)
        finally:
            for handle in handles:
                handle.remove()
        return [*outputs, *_tensors(out)]


def takes_bias(module: nn.Module) -> bool:
    """Whether a linear or norm adds a bias, one that has none too; norms whose class knows no bias are given one."""
    if "bias" not in module._parameters:
        return not isinstance(module, nn.Linear)
    weight = module.weight
    assert isinstance(weight, Tensor)
    x = torch.zeros(1, weight.shape[-1], dtype=weight.dtype, device=weight.device)
    ones = torch.ones(weight.shape[0], dtype=weight.dtype, device=weight.device)
    try:
        out = functional_call(module, {"bias": ones}, (x,))
    except Exception:  # as above
        return False
    return isinstance(out, Tensor) and torch.equal(out, ones.expand_as(out))


def _alike(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape or not before.numel():
        return before.shape == after.shape
    if not before.is_floating_point():
        return torch.equal(before, after)
    before, after = before.float(), after.float()
    known = torch.isfinite(before)
    around = float(before[known].abs().mean()) if bool(known.any()) else 0.0
    return torch.allclose(after, before, rtol=TOLERANCE, atol=TOLERANCE * around, equal_nan=True)


def _in_float32(value: Any) -> Any:
    """A copy whose half precision tensors are float32."""
    if isinstance(value, Tensor):
        copy = value.detach().clone()
        return copy.float() if copy.dtype in (torch.float16, torch.bfloat16) else copy
    if type(value) in (tuple, list):
        return type(value)(map(_in_float32, value))
    if type(value) is dict:
        return {key: _in_float32(one) for key, one in value.items()}
    return deepcopy(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in the output of a module, in its order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
