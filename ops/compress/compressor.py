"""Codes the int8 weights of a whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .base import Codec, Int8Array, Parts


class Compressor:
    """`Compressor(codec).run(weights)`: each weight coded by the codec."""

    def __init__(self, codec: Codec, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        self.codec = codec
        self.progress = progress

    def run(self, weights: Mapping[str, Int8Array]) -> dict[str, Parts]:
        """name -> int8 [n, k] becomes name -> stored tensors."""
        coded: dict[str, Parts] = {}
        for name, weight in weights.items():
            coded[name] = self.codec.encode(weight)
            self.progress(len(coded), len(weights))
        return coded
