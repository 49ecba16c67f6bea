"""What calibration sees of a linear's input: its tails in the float model, then the range of its grid."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from slimrun.ops.format.arithmetic import QuantizedWeight, activation_grid
from slimrun.ops.format.linear import Int8Linear, QuantizedLinear, quantized_linear
from slimrun.ops.quant.observer import KnownRange, Observer, make_observer, range_parameter

from .base import Arrays, Layer, Network, Sample, Watcher
from .journal import Journal, Noted, Tensors
from .states import Walk

EXPERT = re.compile(r"\bexperts\.\d+\.")  # in the name of a linear
EXPERT_TOKENS = 32  # that an expert must see: the range of fewer is none of the tokens to come
UNREACHED = "no calibration sample reached it"  # why a linear has no input grid
BARELY_REACHED = f"calibration routed fewer than {EXPERT_TOKENS} tokens to it"


class InputRange:
    """The input of one quantized linear, whose grid follows every batch at once.

    `put_back` makes the linear float again where there is no other format for one that no sample reaches.
    `reciprocal_scale` is that of `activation_grid`. With `clips_first` the range leaves out the first token of each
    sample: where others attend to it for nothing its inputs have spikes, and a grid that holds them is coarse for all.
    """

    def __init__(
        self,
        name: str,
        linear: Int8Linear,
        weight: QuantizedWeight,
        put_back: Callable[[], None] | None,
        reciprocal_scale: bool = False,
        clips_first: bool = False,
    ) -> None:
        self.linear = linear
        self.weight = weight
        self.reciprocal_scale = reciprocal_scale
        self.clips_first = clips_first
        self.put_back = put_back
        self.tokens = 0
        self.least_tokens = EXPERT_TOKENS if EXPERT.search(name) else 1

    def observe(self, kind: str, layer: Layer) -> None:
        """Begin with an observer of this kind."""
        self.observer: Observer = make_observer(kind, layer.range_parameter)
        layer.observer = type(self.observer).__name__.removesuffix("Observer").lower()

    def without_grid(self, quant_type: str) -> QuantizedLinear:
        """What runs the weight in a format that fixes no grid for its inputs."""
        return quantized_linear(quant_type, self.weight, self.linear.bias, self.linear.dtype)

    @property
    def reached(self) -> bool:
        """Whether it saw enough to have a grid."""
        return self.tokens >= self.least_tokens

    @property
    def lack(self) -> str:
        """Why it has none."""
        return BARELY_REACHED if self.tokens else UNREACHED

    def update(self, x: Tensor) -> None:
        """Take an input [..., k]."""
        if not x.numel():  # an expert without tokens
            return
        self.tokens += x.numel() // x.shape[-1]
        if self.clips_first and x.ndim == 3 and x.shape[1] > 1:  # an expert is given tokens without their places
            x = x[:, 1:]
        self.observer.update(x)
        self._follow()

    def seen(self) -> Tensor:
        """float64 [3]: lower and upper end of the range, and how many tokens it is of."""
        return torch.tensor([*self.observer.range(), self.tokens], dtype=torch.float64)

    def see_again(self, seen: Tensor) -> None:
        """Go back to what `seen` gave."""
        low, high, tokens = seen.tolist()
        self.observer, self.tokens = KnownRange(low, high), int(tokens)
        self._follow()

    def _follow(self) -> None:
        low, high = self.observer.range()
        grid = activation_grid(low, high, self.linear.dtype, reciprocal_scale=self.reciprocal_scale)
        self.linear.set_grid(self.weight, grid)


class InputRanges(dict[str, InputRange]):
    """The input ranges of many linears, by name."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def clear(self) -> None:
        """Forget what was seen."""
        super().clear()
        self._told.clear()

    def seen(self) -> Tensors:
        """What each linear has `seen`, of those that saw something since this was last asked."""
        new = [name for name, one in self.items() if one.tokens and name not in self._told]
        self._told.update(new)
        return {name: self[name].seen() for name in new}

    def see_again(self, seen: Tensors) -> None:
        """Go back to what `seen` gave."""
        self._told.update(seen)
        for name, one in seen.items():
            self[name].see_again(one)


class InputStatistics:
    """How heavy the tails of each linear's input are in the float model, and its first peak."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._all = [dict.fromkeys(names, 0.0) for _ in range(4)]
        self._lows, self._highs, self._deviations, self._peaks = self._all

    def update(self, name: str, inputs: Tensor, first: bool) -> None:
        """Take an input [..., k] of a linear, on the first sample or another one."""
        if not inputs.numel():
            return
        x = inputs.detach().to(torch.float32).reshape(-1, inputs.shape[-1])
        low, high = torch.aminmax(x, dim=0)
        self._lows[name] = min(self._lows[name], float(low.min()))
        self._highs[name] = max(self._highs[name], float(high.max()))
        if first:
            self._peaks[name] = max(-self._lows[name], self._highs[name])
        # the original's shift is the sum of the extremes, not half of it: kept, the ranking depends on it
        self._deviations[name] = max(self._deviations[name], float((x - (low + high)).std()))

    def seen(self) -> Tensors:
        """All that was seen, float64 [names]."""
        sums = [torch.tensor(list(one.values()), dtype=torch.float64) for one in self._all]
        return {str(place): one for place, one in enumerate(sums)}

    def see_again(self, seen: Tensors) -> None:
        """Go back to what `seen` gave."""
        for place, sums in enumerate(self._all):
            sums.update(zip(self.names, seen[str(place)].tolist()))

    def arrays(self) -> Arrays:
        """`range_parameter` and `first_peak`, float64 [names]."""
        tails = [range_parameter(self._deviations[name], self._lows[name], self._highs[name]) for name in self.names]
        return {"range_parameter": np.array(tails), "first_peak": np.array([self._peaks[name] for name in self.names])}


def input_statistics(
    network: Network, samples: Sequence[Sample], parts: int, names: Sequence[str], journal: Journal
) -> Arrays:
    """`InputStatistics.arrays` of these linears in the float model, which runs in so many parts, over the samples."""
    statistics = InputStatistics(names)
    noted = Noted(journal, "statistics", statistics.seen, statistics.see_again)
    walk = Walk(network, samples, parts, noted, names)

    def watcher(name: str) -> Watcher:
        return lambda x: statistics.update(name, x, walk.sample == 0)

    with walk.network.watching({name: watcher(name) for name in names}):
        for _ in walk:
            pass
    return statistics.arrays()
