"""A model by its blocks: what runs before the first, each of them, and what runs after the last.

The model's own forward is what calls them, so that each gets the masks, positions and whatever else it is due. Up to a
block those before it are passed over, and at the next one the run ends: the state that it would be given is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from slimrun.ops.calibration.wiring import blocks_of


class Reached(Exception):
    """A run has come to the next block, which would be given `state`."""

    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.state = state


class Blocks:
    """The blocks of a model in the order in which they run, none when they cannot be told.

    `live` says whether what runs is the part that was asked for.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.blocks: list[nn.Module] = []
        self.live = True
        self._beside: list[tuple[Any, ...] | None] = []  # what a block gives beside the state; None: the state is all

    def tell(self, run: Callable[[], Any], first_tensor: Callable[[Any], Tensor]) -> int:
        """Find the blocks while `run` runs the model; returns the number of parts.

        Blocks are told where each runs once, shares no module with another, gives no tensor but its state, and the
        model gives the same part by part.
        """
        self.blocks, called, outputs = [], [], []

        def note(block: nn.Module, _: Any, out: Any) -> None:
            called.append(block)
            outputs.append(out)

        handles = [block.register_forward_hook(note) for block in blocks_of(self.model)]
        try:
            whole = run()
        finally:
            for handle in handles:
                handle.remove()
        modules = [module for block in called for module in block.modules()]
        if called and len(set(modules)) == len(modules) and all(map(_is_state, outputs)):
            self.blocks, self._beside = called, [out[1:] if isinstance(out, tuple) else None for out in outputs]
            outputs.clear()
            if not self._gives(whole, run, first_tensor):
                self.blocks = []
        return len(self.blocks) + 1

    def run(self, part: int, run: Callable[[], Any], state: Any) -> Any:
        """One part, given what the one before gave; `run` runs the model."""
        if not self.blocks:
            return run()
        self.live = part == 0
        try:
            with self._stepping(part, state):
                out = run()
        except Reached as reached:
            return reached.state
        finally:
            self.live = True
        if part < len(self.blocks):
            raise RuntimeError(f"block {part + 1} of {len(self.blocks)} is not called, as it was on the first sample")
        return out

    def _gives(self, whole: Any, run: Callable[[], Any], first_tensor: Callable[[Any], Tensor]) -> bool:
        """Whether part by part the model gives what it gives as a whole."""
        state: Any = None
        try:
            for part in range(len(self.blocks) + 1):
                state = self.run(part, run, state)
            return torch.equal(first_tensor(state), first_tensor(whole))
        except Exception:  # the code of a model raises anything when something is not as it expects
            return False

    @contextmanager
    def _stepping(self, part: int, state: Any) -> Iterator[None]:
        """Meanwhile blocks before those of the part are passed over, and the one after ends the run."""
        replaced = self.blocks[: part + 1]
        own = [vars(block).get("forward") for block in replaced]  # accelerate's
        for index, block in enumerate(replaced):
            if index == part:
                forward: Callable[..., Any] = _end
            elif index == part - 1:
                forward = partial(self._enter, block.forward, state)
            else:
                forward = partial(self._pass_over, index, state)
            vars(block)["forward"] = forward
        try:
            yield
        finally:
            for block, before in zip(replaced, own):
                if before is None:
                    del vars(block)["forward"]
                else:
                    vars(block)["forward"] = before

    def _pass_over(self, index: int, state: Tensor, *_: Any, **__: Any) -> Any:
        beside = self._beside[index]
        return state if beside is None else (state, *beside)

    def _enter(self, forward: Callable[..., Any], state: Tensor, *given: Any, **named: Any) -> Any:
        self.live = True
        place = _place(given, named)
        if isinstance(place, str):
            return forward(*given, **{**named, place: state})
        return forward(*given[:place], state, *given[place + 1 :], **named)


def _end(*given: Any, **named: Any) -> Any:
    place = _place(given, named)
    raise Reached(named[place] if isinstance(place, str) else given[place])


def _place(given: Sequence[Any], named: dict[str, Any]) -> int | str:
    """Where among its arguments a block is given the state: the first tensor."""
    places: Iterator[tuple[int | str, Any]] = chain(enumerate(given), named.items())
    return next(place for place, value in places if isinstance(value, Tensor))


def _is_state(out: Any) -> bool:
    """Whether a block gives the state, and beside it nothing that is a tensor."""
    if not isinstance(out, tuple):
        return isinstance(out, Tensor)
    return isinstance(out[0], Tensor) and not any(isinstance(value, Tensor) for value in out[1:])
