"""Codes the int8 weights of a whole model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from .base import Codec, Int8Array, Parts

if TYPE_CHECKING:
    from slimrun.ops.memory import Room


class Compressor:
    """Codes weights by the codec, several at once, on threads of its own.

    `run(weights)` codes a whole model. `add(name, weight)` returns at once, so that the next weight can be quantized
    while this one is being coded, which must not change meanwhile; `finish()` then gives what all of them became, which
    lies in `room`, or in memory.
    """

    def __init__(
        self,
        codec: Codec,
        progress: Callable[[int, int], None] = lambda done, total: None,
        room: Room | None = None,
    ) -> None:
        self.codec = codec
        self.progress = progress
        self.room = room
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="compress")
        self._coded: dict[str, Future[Parts]] = {}

    def run(self, weights: Mapping[str, Int8Array]) -> dict[str, Parts]:
        """name -> int8 [n, k] becomes name -> stored tensors."""
        for name, weight in weights.items():
            self.add(name, weight)
        return self.finish()

    def add(self, name: str, weight: Int8Array) -> None:
        """Begin to code a weight."""
        self._coded[name] = self._pool.submit(self._encode, weight)

    def finish(self) -> dict[str, Parts]:
        """name -> stored tensors, in the order of `add`; the first error of the codec, if it had one."""
        done: dict[str, Parts] = {}
        try:
            for name, coded in self._coded.items():
                done[name] = coded.result()
                self.progress(len(done), len(self._coded))
        finally:
            self._pool.shutdown(cancel_futures=True)
        return done

    def _encode(self, weight: Int8Array) -> Parts:
        coded = self.codec.encode(weight)
        if self.room is None:
            return coded
        self.room.release([weight])
        return {suffix: self.room.keep_array(part) for suffix, part in coded.items()}
