"""What comes back to the embeddings: gradients at what was looked up, while those of linears are measured."""

from __future__ import annotations

import torch
from torch import Tensor

from .moments import POWER, Moment

MOMENT, WEIGHTS = "embeddings.moment", "embeddings.weights"  # of `Lookups.arrays`


class Lookups:
    """The gradients that come back to the embeddings: their second moment, and each token's weight."""

    def __init__(self) -> None:
        self._moment: Moment | None = None  # [H, H], tokens weighted as inputs of linears are
        self._weights: dict[int, Tensor] = {}  # sample -> float32 [T]

    def add(self, sample: int, gradient: Tensor) -> None:
        """The gradient [1, T, H] at what was looked up."""
        rows = gradient.detach().float().flatten(0, -2)
        lengths = rows.square().sum(dim=1).clamp_min(1e-30)
        if self._moment is None:
            self._moment = Moment(rows)
        self._moment.add(rows * lengths.pow((POWER - 1) / 2).unsqueeze(1))
        self._weights[sample] = lengths.pow(POWER)

    def arrays(self) -> dict[str, Tensor]:
        """The moment over the sum of all weights, and the weights of all samples' tokens; nothing if none came."""
        if self._moment is None:
            return {}
        weights = torch.cat([self._weights[sample] for sample in sorted(self._weights)])
        return {MOMENT: self._moment.packed() / weights.sum(), WEIGHTS: weights}
