"""How a model is wired, as calibration sees it while it runs: which norm gave what, and which linears read it.

A scale of a linear's inputs can move into what makes them: the weight of a norm, or rows of another linear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

OFFSETS = (0.0, 1.0)  # what norms add to their weight: Gemma's and their like are stored around zero
OTHER_FUNCTION = "the model computes something else with it"
NOT_REACHED = "linears that may read it were not reached"
SAMPLE_TOKENS = 128  # outputs of each norm that the search looks at


@dataclass
class Norm:
    """What a norm gave during calibration, and the linears that read it."""

    low: Tensor  # float32 [c]
    high: Tensor  # float32 [c]
    tokens: Tensor  # float32 [about SAMPLE_TOKENS, c]
    readers: list[str] = field(default_factory=list)


class Observations:
    """Which norm gave what, over `runs` runs, and which linear read it: told by the identity of the tensor."""

    def __init__(self, runs: int) -> None:
        self.norms: dict[str, Norm] = {}
        self.reached: dict[str, None] = {}  # linears in the order in which they first ran
        self._wanted = SAMPLE_TOKENS // runs + 1
        self._given: dict[int, tuple[str, Any]] = {}  # keeps the tensors alive, so that no id is used twice in a run

    def gave(self, name: str, out: Any, values: Tensor) -> None:
        """The norm gave the framework's tensor `out`, whose numbers are `values` [..., c]."""
        self._given[id(out)] = name, out
        rows = values.detach().reshape(-1, values.shape[-1]).to(torch.float32)
        low, high = rows.amin(dim=0), rows.amax(dim=0)
        norm = self.norms.setdefault(name, Norm(low, high, rows[:0]))
        norm.low, norm.high = torch.minimum(norm.low, low), torch.maximum(norm.high, high)
        norm.tokens = torch.cat([norm.tokens, rows[:: -(-len(rows) // self._wanted)]])

    def read(self, name: str, given: Any) -> None:
        """The linear was given the framework's tensor `given`."""
        self.reached.setdefault(name)
        if id(given) in self._given:
            readers = self.norms[self._given[id(given)][0]].readers
            if name not in readers:
                readers.append(name)

    def end_run(self) -> None:
        """Forget the tensors of a run, or of a part of it."""
        self._given.clear()


@dataclass(frozen=True)
class Fold:
    """The linears that read one input [k], and the module that takes the scale: its weight's entry or row `of[i]`."""

    readers: tuple[str, ...]
    producer: str
    of: Tensor  # int64 [k]
    offset: float = 0.0  # what the producer adds to its weight

    def per_producer(self, values: Tensor) -> Tensor:
        """The largest of values [k] of all inputs that an entry or row makes, for each input [k]."""
        largest = torch.full((int(self.of.max()) + 1,), -torch.inf).scatter_reduce(0, self.of, values, "amax")
        return largest[self.of]

    def by_row(self, scale: Tensor, rows: int) -> Tensor:
        """The scale [k] by entry or row of the producer's weight [rows], 1 for those that make none of the inputs."""
        scales = torch.ones(rows)
        scales[self.of] = scale
        return scales


def folds_of_norm(name: str, readers: Sequence[str], width: int) -> list[Fold]:
    """What a norm of this width and the linears that read it may be: its weight as it is, or less an offset."""
    return [Fold(tuple(readers), name, torch.arange(width), offset) for offset in OFFSETS]


def first_readers(model: nn.Module, linears: Sequence[str], run: Callable[[], Any]) -> dict[str, str]:
    """Linear -> the first in running order that reads the same tensor; those that `run` does not reach are left out."""
    first: dict[str, str] = {}
    seen: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors alive, so that no id is used twice

    def read(name: str, x: Tensor) -> None:
        first[name] = seen.setdefault(id(x), (name, x))[0]

    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: read(name, given[0]))
        for name in linears
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return first


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The outermost blocks that a model names: `_no_split_modules` of transformers, what no device map splits."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    named = [module for module in model.modules() if type(module).__name__ in kinds]
    inner = {id(module) for block in named for module in block.modules() if module is not block}
    return [block for block in named if id(block) not in inner]


def others_may_read(linears: Mapping[str, tuple[int, int]], parts: Sequence[str], reached: Collection[str]) -> bool:
    """Whether a linear that did not run stands among `parts`, the last of which reads an input of the same width.

    Experts without a token show nothing of what they would read.
    """
    around = common_path(parts)
    return any(
        name not in reached and shape[1] == linears[parts[-1]][1] and name.split(".")[: len(around)] == around
        for name, shape in linears.items()
    )


def common_path(parts: Sequence[str]) -> list[str]:
    """The names that lead to the smallest module that holds all these modules."""
    shared = []
    for names in zip(*(part.split(".")[:-1] for part in parts)):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return shared


def skipped(key: str, places: Mapping[str, str]) -> list[str]:
    """Notes, one a kind of place, that no scale is folded into these modules, and why; `key` asked for it."""
    counts = Counter(
        (".".join(part for part in name.split(".") if not part.isdecimal()), why) for name, why in places.items()
    )
    return [
        f"{key}: {count} fold{'s' * (count > 1)} into {kind} skipped, {why}" for (kind, why), count in counts.items()
    ]


def divided(weight: Tensor, scale: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Weight float32 [c] of a norm whose outputs are divided by `scale` [c], and the scale as the stored weight has it.

    A weight that is stored less an offset keeps few digits of what is near zero, so the readers must take what it says.
    """
    weight, dtype = weight.float(), weight.dtype
    if not offset:
        return weight / scale, scale
    whole = weight + offset
    largest = whole.abs() / (4 * torch.finfo(dtype).eps)
    scale = torch.where(largest > 0, torch.minimum(scale, largest), 1.0)
    stored = (whole / scale - offset).to(dtype).float()
    return stored, torch.where(largest > 0, whole / (stored + offset), 1.0)
