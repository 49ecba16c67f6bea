"""The project's own entropy coder (`ops/csrc`): tile-indexed, checksummed, decodable tile by tile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from slimrun.ops import compress

from .base import Allocate, Int8Array, Parts, empty

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Native:
    """Codes a matrix as `.info` (header), `.index` (models and tile entries) and `.weight` (coded tiles)."""

    container: ClassVar[str] = compress.CONTAINER_NAME
    version: ClassVar[int] = compress.CONTAINER_VERSION
    parts: ClassVar[tuple[str, ...]] = ("info", "index", "weight")

    tile_size: int = 65536
    threads: int = 0
    floats: bool = True

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and the range."""
        if not 4096 <= self.tile_size <= 1 << 20 or self.tile_size & (self.tile_size - 1):
            raise ValueError(f"tile_size={self.tile_size} is out of range; allowed: powers of two, 4096 to 1048576")
        if self.threads < 0:
            raise ValueError(f"threads={self.threads} is out of range; allowed: 0 (all cores) or more")

    def encode(self, weight: Int8Array) -> Parts:
        """Code an int8 array of any shape."""
        sections = compress.encode_sections(weight, tile_size=self.tile_size, threads=self.threads)
        # copies: a view of one section would keep the memory of all three, and the payload moves to a `Room`
        return {"info": sections.info.copy(), "index": sections.index.copy(), "weight": sections.payload}

    def encode_numbers(self, tensor: Tensor) -> npt.NDArray[np.uint8] | None:
        """Numbers wider than a byte, of any shape, coded; None where that does not make them smaller."""
        if not self.floats or str(tensor.dtype).removeprefix("torch.") not in compress.NUMBERS:
            return None
        packed = compress.encode_to_array(tensor, tile_size=self.tile_size, threads=self.threads)
        return packed if packed.nbytes < tensor.nbytes else None

    def decode(self, parts: Mapping[str, npt.NDArray[np.generic]], allocate: Allocate = empty) -> Int8Array:
        """The array again; every checksum is verified."""
        missing = [name for name in self.parts if name not in parts]
        if missing:
            raise ValueError(f"lacks .{', .'.join(missing)}")
        sections = parts["info"], parts["index"], parts["weight"]
        return compress.decode_sections(*sections, out=allocate, threads=self.threads)
