"""The loss of a quantized model, measured on samples that nothing was measured on before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slimrun.ops.calibration.base import GradientNetwork, Sample
from slimrun.ops.quant.rdoq import RDOQ

SHARE = 4  # one sample in so many is held out, where the loss is the target


def count_held_out(quantizer: RDOQ, samples: int) -> int:
    """How many of the samples, the last of them, are held out; ValueError when there are too few."""
    if quantizer.target_kl is None:
        return 0
    if samples < 2:
        raise ValueError(
            f"target_kl={quantizer.target_kl} is measured on prompts held out: 2 or more are needed, not {samples}"
        )
    return max(1, samples // SHARE)


class HeldOut:
    """Samples held out, and what the network says of them while it is float still."""

    def __init__(self, network: GradientNetwork, samples: Sequence[Sample]) -> None:
        self.network = network
        self.samples = samples
        self._reference = [self._log_probs(sample) for sample in samples]

    def loss(self) -> float:
        """KL(float || quantized) in nats a token."""
        lost = 0.0
        for float_one, sample in zip(self._reference, self.samples):
            lost += float((float_one.exp() * (float_one - self._log_probs(sample))).sum())
        return lost / sum(map(len, self._reference))

    def _log_probs(self, sample: Sample) -> Tensor:
        """float32 [T, V]."""
        logits = self.network.head()(self.network.states(sample))
        return torch.log_softmax(logits.float(), dim=-1).flatten(0, -2)
