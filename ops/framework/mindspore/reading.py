"""How a MindSpore LLaMA reads texts: in a compiled graph, or layer by layer where memory has no room for the model.

Either way in steps over a cache, and with the same bits. A compilation takes seconds and serves one shape, so few
shapes occur: tokens come in chunks of `CHUNK`, padded on the right, and caches are multiples of `WIDTH` columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
import numpy.typing as npt
from mindspore import Tensor, ops

from slimrun.ops.calibration.states import States
from slimrun.ops.memory import Room
from slimrun.ops.weights.mindspore import from_torch, to_torch

from .llama import CHUNK, WIDTH, Llama

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

SHORT_CHUNK = 16  # tokens of the options after a prefix that are run at once, or a multiple


@dataclass(frozen=True)
class Step:
    """Tokens [B, T] that are read at once: they stand at the columns from `start` on, padded to `width`.

    What padding writes into the cache lies behind the tokens, and the tokens that come there overwrite it.
    """

    ids: IntArray
    start: int
    width: int

    def given(self) -> tuple[Tensor, Tensor]:
        """Tokens and columns, int32 [B, width]."""
        tokens = np.zeros((len(self.ids), self.width), np.int32)
        tokens[:, : self.ids.shape[1]] = self.ids
        columns = np.arange(self.start, self.start + self.width, dtype=np.int32)
        return Tensor(tokens), Tensor(np.broadcast_to(columns, tokens.shape).copy())

    def kept(self, states: Tensor) -> FloatArray:
        """Of states [B, width, H] those of the tokens."""
        return np.asarray(states.astype(ms.float32).asnumpy())[:, : self.ids.shape[1]]


@dataclass(frozen=True)
class Text:
    """Steps one after the other over a cache of `width` columns; several rows after one go on from copies of it."""

    steps: list[Step]
    width: int


def whole(ids: IntArray) -> Text:
    """Tokens [B, T] in one step."""
    width = rounded(ids.shape[1], CHUNK)
    return Text([Step(ids, 0, width)], width)


def prefixed(prefix: Sequence[int], options: Sequence[Sequence[int]]) -> Text:
    """A prefix in chunks, and then, in one step, what its options have before their last tokens."""
    tokens, length = np.array([prefix]), max(map(len, options))
    steps = [Step(tokens[:, start : start + CHUNK], start, CHUNK) for start in range(0, len(prefix), CHUNK)]
    if length > 1:
        ids = np.array([[*option, *[0] * (length - len(option))] for option in options])[:, :-1]
        steps.append(Step(ids, len(prefix), rounded(length - 1, SHORT_CHUNK)))
    return Text(steps, rounded(len(prefix) + length, WIDTH))


def through_graph(network: Llama, graph: Any, text: Text) -> list[FloatArray]:
    """States [B, T, H] before the output head, of each step."""
    cache: Any = network.new_cache(len(text.steps[0].ids), text.width)
    read = []
    for step in text.steps:
        cache = [tuple(_copies(layer, len(step.ids)) for layer in half) for half in cache]
        states, *cache = graph(*step.given(), *(ms.mutable(half) for half in cache))
        read.append(step.kept(states))
    return read


def layer_by_layer(network: Llama, texts: Sequence[Text], room: Room) -> Iterator[list[FloatArray]]:
    """The same of each text; all of them go through a layer before the next one."""
    states = States(sum(len(text.steps) for text in texts), room)
    for number, layer in enumerate(network.model.layers):
        place = 0
        for text in texts:
            keys = values = network.new_cache(len(text.steps[0].ids), text.width)[0][0]
            for step in text.steps:
                tokens, columns = step.given()
                x = from_torch(states.take(place)) if number else network.model.embed_tokens(tokens)
                keys, values = _copies(keys, len(tokens)), _copies(values, len(tokens))
                beside = network.model.beside(columns, text.width, x.dtype)
                x, keys, values = layer(x, *beside, columns, keys, values)
                states.put(place, to_torch(x))
                place += 1
        room.release(to_torch(parameter) for parameter in layer.get_parameters())
    place = 0
    for text in texts:
        last = range(place, place + len(text.steps))
        place = last.stop
        normed = [network.model.norm(from_torch(states.take(index))) for index in last]
        yield [step.kept(given) for step, given in zip(text.steps, normed, strict=True)]


def rounded(count: int, step: int) -> int:
    """The next multiple of the step."""
    return -(-count // step) * step


def _copies(half: Tensor, rows: int) -> Tensor:
    """Keys or values [B, heads, S, D] for so many rows: B, or any number where B is 1."""
    return half if len(half) == rows else ops.tile(half, (rows, 1, 1, 1))
