"""A MindSpore network as calibration sees it: its linears by name, and what they read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mindspore import Parameter, Tensor, nn

from slimrun.ops.calibration.base import OTHER_INPUTS, WEIGHT_READ, Sample, Watcher
from slimrun.ops.calibration.blocks import Blocks
from slimrun.ops.calibration.smoothing import foldable_by_runs
from slimrun.ops.calibration.wiring import Observations
from slimrun.ops.format.linear import QuantizedLinear
from slimrun.ops.memory import Room, give_back
from slimrun.ops.model.tables import Table
from slimrun.ops.weights.mindspore import from_torch, to_torch

from .cells import (
    Biased,
    activation_of,
    add_bias,
    bias_of,
    blocks_of,
    cell_of,
    check_mode,
    gates,
    linear_names,
    norms,
    put,
)
from .int8_cell import QuantizedCell, quantized_cell
from .mapped import released_after_use
from .tables import put_table, tables


class MindSporeNetwork:
    """A network as `slimrun.ops.calibration.base.Network`; `forward` runs one sample, by default the network itself."""

    def __init__(self, network: nn.Cell, forward: Callable[..., Any] | None = None, room: Room | None = None) -> None:
        self.network = network
        self.forward = forward or network
        self.room = room or Room()
        self._runs = 0
        self._blocks = Blocks("construct", Tensor, lambda cell: (one for _, one in cell.cells_and_names()))

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name and shape [n, k] of every linear, in the order of the cells."""
        return linear_names(self.network)

    def kept(self) -> dict[str, str]:
        """Gates, which stay float."""
        return gates(self.network)

    def quantized(self) -> list[str]:
        """Names of the quantized linears, in the order of the cells."""
        return [name for name, cell in self.network.cells_and_names() if isinstance(cell, QuantizedCell)]

    def used_otherwise(self, names: Sequence[str], run: Callable[[], Any]) -> dict[str, str]:
        """Linear -> why it cannot be replaced: what the network does with it beside calling it, while `run` runs."""
        check_mode()
        reasons: dict[str, str] = {}
        asked = [(name, Asked(cell_of(self.network, name), partial(reasons.setdefault, name))) for name in names]
        with _wrapped(self.network, asked):
            run()
        return reasons

    @contextmanager
    def linear(self, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Weight and bias."""
        cell = cell_of(self.network, name)
        bias = bias_of(cell)
        weight = to_torch(cell.weight)
        yield weight, None if bias is None else to_torch(bias).clone()
        self.room.release([weight])

    def replace(self, name: str, linear: QuantizedLinear) -> Callable[[], None]:
        """Put a quantized linear in the place of the one that is there; calling what is returned puts it back."""
        old = cell_of(self.network, name)
        activation = old.activation if isinstance(old, QuantizedCell) else activation_of(old)
        put(self.network, name, quantized_cell(name, linear, activation))
        return lambda: put(self.network, name, old)

    def tables(self, sample: Sample | None) -> list[Table]:
        """Embeddings and output layer of a LLaMA that is built here."""
        return tables(self.network)

    def replace_table(self, table: Table, quantized: QuantizedLinear) -> None:
        """Put a quantized table in all places of the float one."""
        put_table(self.network, table, quantized)

    def leave(self, count: int) -> None:
        """Return what the float linears took to the system."""
        give_back()

    @contextmanager
    def watching(self, watchers: Mapping[str, Watcher]) -> Iterator[None]:
        """Meanwhile each linear's input goes to its watcher before the linear computes."""
        check_mode()
        runs = self._runs
        watched = {
            name: Watched(cell_of(self.network, name), self._blocks.while_live(watcher))
            for name, watcher in watchers.items()
        }
        try:
            with _wrapped(self.network, list(watched.items())):
                yield
        finally:
            for cell in watched.values():
                if isinstance(cell.cell, QuantizedCell):
                    cell.cell.update()
        if watched and self._runs > runs and not any(cell.calls for cell in watched.values()):
            raise ValueError(
                "no linear was called during calibration: is the network compiled (ms.jit)? calibrate it in PyNative"
            )

    @contextmanager
    def observing(self, seen: Observations) -> Iterator[None]:
        """Meanwhile norms and linears report what they give and read."""
        check_mode()
        cells: list[tuple[str, Any]] = []
        for name in self.linears():
            cells.append(
                (name, Reading(cell_of(self.network, name), self._blocks.while_live(partial(seen.read, name))))
            )
        for name, cell in norms(self.network).items():
            cells.append((name, Giving(cell, self._blocks.while_live(partial(seen.gave, name)))))
        with _wrapped(self.network, cells):
            yield

    def affine(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of a norm or a linear."""
        cell = cell_of(self.network, name)
        bias = bias_of(cell)
        weight = cell.cell.weight if isinstance(cell, Biased) else cell.weight
        return to_torch(weight), None if bias is None else to_torch(bias)

    def foldable(self, norms: Mapping[str, Sequence[str]], run: Callable[[], Any]) -> dict[str, float]:
        """Norms that can give something else, by what the whole network then gives; with each its offset."""

        def takes_shift(name: str) -> bool:
            cell = cell_of(self.network, name)
            return activation_of(cell) is None or bias_of(cell) is not None

        shifted = {name: given for name, given in norms.items() if all(map(takes_shift, given))}
        return foldable_by_runs(self, shifted, run)

    def set_affine(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Give a norm or a linear this weight and this bias; None: what it has stays."""
        cell = cell_of(self.network, name)
        parameter = cell.cell.weight if isinstance(cell, Biased) else cell.weight
        parameter.set_data(from_torch(self.room.keep(weight.to(to_torch(parameter).dtype))))
        if bias is not None:
            add_bias(self.network, name, bias.to(to_torch(parameter).dtype))

    def first_tensor(self, output: Any) -> torch.Tensor:
        """The first tensor of what the network gave: a Tensor or a tuple."""
        return to_torch(output if isinstance(output, Tensor) else output[0])

    def run(self, sample: Sample) -> Any:
        """The network on one sample."""
        self._runs += 1
        with released_after_use(self.network, self.room):
            return self.forward(**sample) if isinstance(sample, Mapping) else self.forward(*sample)

    def tell_parts(self, sample: Sample) -> int:
        """In how many parts the network can run, tried out on a sample."""

        def same(one: Any, other: Any) -> bool:
            return torch.equal(self.first_tensor(one), self.first_tensor(other))

        return self._blocks.tell(blocks_of(self.network), partial(self.run, sample), same)

    def run_part(self, part: int, sample: Sample, state: Any, *, blocks_alone: bool = False) -> Any:
        """One part of the network on one sample, given what the part before gave of it, as a torch tensor."""
        given = from_torch(state) if isinstance(state, torch.Tensor) else state
        out = self._blocks.run(part, partial(self.run, sample), given, blocks_alone=blocks_alone)
        return to_torch(out) if isinstance(out, Tensor) else out

    def in_blocks(self, names: Iterable[str]) -> bool:
        """Whether all linears of these names are in blocks."""
        return self._blocks.have(cell_of(self.network, name) for name in names)


@contextmanager
def _wrapped(network: nn.Cell, cells: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """Meanwhile these cells stand in the places of those that they hold as `cell`."""
    for name, cell in cells:
        put(network, name, cell)
    try:
        yield
    finally:
        for name, cell in cells:
            put(network, name, cell.cell)


class Watched(nn.Cell):
    """A linear whose input is shown to a watcher; a quantized one computes on the host, where its grid just moved."""

    def __init__(self, cell: nn.Cell, watcher: Watcher) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.watcher = watcher
        self.calls = 0

    def construct(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        seen = to_torch(x)
        self.watcher(seen)
        self.calls += 1
        if not isinstance(self.cell, QuantizedCell):
            return self.cell(x)
        with torch.no_grad():
            return self.cell.finish(from_torch(self.cell.linear(seen)))


class Asked(nn.Cell):
    """A linear that says when the network takes its weight to multiply with it itself."""

    def __init__(self, cell: nn.Cell, say: Callable[[str], object]) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.say = say

    @property
    def weight(self) -> Parameter:
        """[n, k]."""
        self.say(WEIGHT_READ)
        return self.cell.weight

    @property
    def bias(self) -> Parameter | None:
        """[n], None for none."""
        return bias_of(self.cell)

    def construct(self, *given: Any, **named: Any) -> Tensor:
        """x [..., k] -> [..., n]."""
        if named or len(given) != 1:
            self.say(OTHER_INPUTS)
        return self.cell(*given, **named)


class Reading(nn.Cell):
    """A linear that shows what it is given."""

    def __init__(self, cell: nn.Cell, show: Callable[[Tensor], None]) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.show = show

    def construct(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        self.show(x)
        return self.cell(x)


class Giving(nn.Cell):
    """A norm that shows what it gives."""

    def __init__(self, cell: nn.Cell, show: Callable[[Tensor, torch.Tensor], None]) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.show = show

    def construct(self, x: Tensor) -> Tensor:
        """x [..., c] -> [..., c]."""
        out = self.cell(x)
        self.show(out, to_torch(out))
        return out
