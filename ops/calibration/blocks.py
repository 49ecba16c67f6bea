"""A model by its blocks: what runs before the first, each of them, and what runs after the last.

The model's own code is what calls them, so that each gets the masks, positions and whatever else it is due. Up to a
block those before it are passed over, and at the next one the run ends: the state that it would be given is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch

PLAIN = (bool, int, float, str)  # what a block may give beside its state on any sample alike


class Reached(Exception):
    """A run has come to the next block, or to what follows the last, which would be given `state`."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state


class PassedBy(Exception):
    """A block is given more than its state that gradients would flow through."""


class Blocks:
    """The blocks of a model in the order in which they run, none when they cannot be told.

    `method` is what a framework calls of a block, `tensor` its class of tensors, `modules` gives what is in a block.
    `live` says whether what runs is the part that was asked for.
    """

    def __init__(self, method: str, tensor: type, modules: Callable[[Any], Iterable[Any]]) -> None:
        self.method = method
        self.tensor = tensor
        self.modules = modules
        self.blocks: list[Any] = []
        self.live = True
        self._beside: list[tuple[Any, ...] | None] = []  # what a block gives beside the state; None: the state is all

    def tell(self, named: Sequence[Any], run: Callable[[], Any], same: Callable[[Any, Any], bool]) -> int:
        """Find the blocks among those that the model names, while `run` runs it; returns the number of parts.

        They are told where each runs once and shares no module with another, and the model gives the `same` part by
        part.
        """
        self.blocks, called, outputs = [], [], []

        def note(block: Any, forward: Callable[..., Any], *given: Any, **arguments: Any) -> Any:
            out = forward(*given, **arguments)
            called.append(block)
            outputs.append(out)
            return out

        with self._calling({index: partial(note, block, self._own(block)) for index, block in enumerate(named)}, named):
            whole = run()
        inside = [id(module) for block in called for module in self.modules(block)]
        if called and len(set(inside)) == len(inside) and all(map(self._is_state, outputs)):
            self.blocks, self._beside = called, list(map(_beside, outputs))
            outputs.clear()
            if not self._gives(whole, run, same):
                self.blocks = []
        return len(self.blocks) + 1

    def while_live(self, report: Callable[..., None]) -> Callable[..., None]:
        """The report, of what runs in the part alone that was asked for."""

        def live_report(*seen: Any) -> None:
            if self.live:
                report(*seen)

        return live_report

    def have(self, modules: Iterable[Any]) -> bool:
        """Whether all of these are in blocks."""
        inside = {id(module) for block in self.blocks for module in self.modules(block)}
        return all(id(module) in inside for module in modules)

    def run(self, part: int, run: Callable[[], Any], state: Any, *, blocks_alone: bool = False) -> Any:
        """One part, given what the one before gave; `run` runs the model, `blocks_alone` not what follows the last."""
        if not self.blocks:
            return run()
        instead: dict[int, Callable[..., Any]] = {
            index: partial(self._pass_over, self._beside[index], state) for index in range(part - 1)
        }
        if part:
            enter = partial(self._enter, self._own(self.blocks[part - 1]), state)
            instead[part - 1] = partial(self._run_last, enter) if blocks_alone and part == len(self.blocks) else enter
        if part < len(self.blocks):
            instead[part] = self._end
        self.live = part == 0
        try:
            with self._calling(instead, self.blocks):
                out = run()
        except Reached as reached:
            return reached.state
        finally:
            self.live = True
        if part < len(self.blocks):
            raise RuntimeError(f"block {part + 1} of {len(self.blocks)} is not called, as it was on the first sample")
        return out

    def _gives(self, whole: Any, run: Callable[[], Any], same: Callable[[Any, Any], bool]) -> bool:
        """Whether part by part the model gives what it gives as a whole."""
        state: Any = None
        try:
            for part in range(len(self.blocks) + 1):
                state = self.run(part, run, state)
            return same(state, whole)
        except Exception:  # the code of a model raises anything when something is not as it expects
            return False

    def _own(self, block: Any) -> Callable[..., Any]:
        forward: Callable[..., Any] = getattr(block, self.method)
        return forward

    @contextmanager
    def _calling(self, instead: Mapping[int, Callable[..., Any]], blocks: Sequence[Any]) -> Iterator[None]:
        """Meanwhile these functions are called instead of blocks of these numbers."""
        before = {index: vars(blocks[index]).get(self.method) for index in instead}  # accelerate's
        for index, forward in instead.items():
            vars(blocks[index])[self.method] = forward
        try:
            yield
        finally:
            for index, forward_before in before.items():
                if forward_before is None:
                    del vars(blocks[index])[self.method]
                else:
                    vars(blocks[index])[self.method] = forward_before

    def _pass_over(self, beside: tuple[Any, ...] | None, state: Any, *_: Any, **__: Any) -> Any:
        return state if beside is None else (state, *beside)

    def _enter(self, forward: Callable[..., Any], state: Any, *given: Any, **named: Any) -> Any:
        self.live = True
        place = self._place(given, named)
        others = [value for key, value in chain(enumerate(given), named.items()) if key != place]
        if torch.is_grad_enabled() and any(_has_gradients(value) for value in others):
            raise PassedBy
        if isinstance(place, str):
            return forward(*given, **{**named, place: state})
        return forward(*given[:place], state, *given[place + 1 :], **named)

    def _run_last(self, enter: Callable[..., Any], *given: Any, **named: Any) -> Any:
        raise Reached(enter(*given, **named))

    def _end(self, *given: Any, **named: Any) -> Any:
        place = self._place(given, named)
        raise Reached(named[place] if isinstance(place, str) else given[place])

    def _place(self, given: Sequence[Any], named: Mapping[str, Any]) -> int | str:
        """Where among its arguments a block is given the state: the first tensor."""
        places: Iterator[tuple[int | str, Any]] = chain(enumerate(given), named.items())
        return next(place for place, value in places if isinstance(value, self.tensor))

    def _is_state(self, out: Any) -> bool:
        return isinstance(out[0] if isinstance(out, tuple) else out, self.tensor)


def _has_gradients(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_has_gradients, value))
    return isinstance(value, torch.Tensor) and value.requires_grad


def _beside(out: Any) -> tuple[Any, ...] | None:
    """What a block that is passed over gives beside the state: no tensors, which would be of another sample."""
    return tuple(value if isinstance(value, PLAIN) else None for value in out[1:]) if isinstance(out, tuple) else None
