"""Many texts through a torch model that memory has no room for: all through one block, then through the next."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from slimrun.ops.calibration.base import Sample
from slimrun.ops.calibration.states import States

from .cached_steps import FAILURES, CachedSteps, joined
from .network import TorchNetwork


@torch.inference_mode()
def hidden_states(network: TorchNetwork, samples: Sequence[Sample]) -> States:
    """The last hidden states of every sample."""
    states = States(len(samples), network.room)
    for part in range(network.parts or network.tell_parts(samples[0])):
        for index, sample in enumerate(samples):
            states.put(index, network.states_part(part, sample, states.take(index)))
    return states


@torch.inference_mode()
def states_after(network: TorchNetwork, steps: CachedSteps, texts: Sequence[tuple[Tensor, Tensor]]) -> States | None:
    """What `CachedSteps.after_prefix` gives of prefixes [Q, P] and the tokens [Q B, T] after them, each.

    None where block by block the model does not give the same bits, which the first text tells.
    """
    try:
        states = _states_after(network, steps, texts)
        alike = torch.equal(states[0], steps.after_prefix(*texts[0]))
    except torch.OutOfMemoryError:
        raise
    except FAILURES:  # a cache that holds more than keys and values fails in its own way
        return None
    return states if alike else None


def _states_after(network: TorchNetwork, steps: CachedSteps, texts: Sequence[tuple[Tensor, Tensor]]) -> States:
    if not steps.keeps_prefix:
        whole = hidden_states(network, [_sample(joined(*text)) for text in texts])
        for index, (prefix, _) in enumerate(texts):
            whole.put(index, whole.take(index)[:, prefix.shape[1] - 1 :])
        return whole
    before, after = States(len(texts), network.room), States(len(texts), network.room)
    parts = network.parts or network.tell_parts(_sample(texts[0][0]))
    for part in range(parts):
        for index, (prefix, later) in enumerate(texts):
            cache = steps.new_cache()
            before.put(index, network.part_of(part, partial(steps.run, prefix, cache), before.take(index)))
            if later.shape[1]:
                steps.fill(cache, prefix.shape[1], parts - 1)
                cache.batch_repeat_interleave(len(later) // len(prefix))
                after.put(index, network.part_of(part, partial(steps.run, later, cache), after.take(index)))
    for index, (prefix, later) in enumerate(texts):
        last = before.take(index)[:, -1:].repeat_interleave(len(later) // len(prefix), dim=0)
        after.put(index, torch.cat([last, after.take(index)], dim=1) if later.shape[1] else last)
    return after


def _sample(ids: Tensor) -> Sample:
    return {"input_ids": ids, "use_cache": False}
