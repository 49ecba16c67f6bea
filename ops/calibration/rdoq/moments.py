"""Second moments [k, k] in little more than half of their memory and time: they are symmetric.

A packed moment is one float32 vector that holds, strip after strip of rows, the columns from the strip's first row on.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from slimrun.ops.format.products import for_products

STRIP = 128  # rows
GATHERED = 1024  # inputs that are worth passing the whole moment, which takes as long as the products of hundreds

POWER = 0.5  # of squared gradients: with 1 a few dozen of 8000 tokens make up the sums, and steps go astray


def packed_size(k: int) -> int:
    """Numbers that a packed moment [k, k] takes."""
    return sum(where.stop - where.start for _, where in _strips(k))


def unpacked(packed: Tensor, k: int) -> Tensor:
    """The whole moment [k, k]."""
    moment = packed.new_empty(k, k)
    for rows, where in _strips(k):
        strip = packed[where].view(-1, k - rows.start)
        moment[rows, rows.start :] = strip
        moment[rows.start :, rows] = strip.t()
    return moment


class Moment:
    """The sum of x^T x of rows x [T, k], packed; GATHERED at once are added, since all of it is passed then."""

    def __init__(self, x: Tensor) -> None:  # of such rows, where these are
        self._sum = x.new_zeros(packed_size(x.shape[1]), dtype=torch.float32)
        self._waiting: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Take inputs, which nobody may change any more."""
        self._waiting.append(for_products(x))
        if sum(map(len, self._waiting)) >= GATHERED:
            self._add()

    def packed(self) -> Tensor:
        """The sum of all inputs so far."""
        self._add()
        return self._sum

    def _add(self) -> None:
        if not self._waiting:
            return
        columns = torch.cat(self._waiting).t()
        k = len(columns)
        for rows, where in _strips(k):
            strip = nn.functional.linear(columns[rows], columns[rows.start :])
            self._sum[where].view(-1, k - rows.start).add_(strip)
        self._waiting.clear()


def _strips(k: int) -> Iterator[tuple[slice, slice]]:
    """Rows of each strip, and where in the vector they lie."""
    done = 0
    for start in range(0, k, STRIP):
        stop = min(start + STRIP, k)
        size = (stop - start) * (k - start)
        yield slice(start, stop), slice(done, done + size)
        done += size
