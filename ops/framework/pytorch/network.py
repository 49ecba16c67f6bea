"""A torch model as calibration sees it: its linears by name, what they read, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from slimrun.ops.calibration.base import Sample, Watcher
from slimrun.ops.calibration.wiring import blocks_of
from slimrun.ops.format.linear import QuantizedLinear
from slimrun.ops.format.products import fast_linears
from slimrun.ops.memory import Room, give_back, release
from slimrun.ops.model.experts import unstack
from slimrun.ops.model.linears import float_linears
from slimrun.ops.model.output_head import output_layer
from slimrun.ops.model.tables import Table, tables

from .mapped import move, release_after_use
from .placement import take_over
from .smoothable import TorchSmoothable, reports_input
from .usage import watched_use

GLANCE = 32  # tokens to see how the model is wired


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that torch.compile has wrapped, or the model itself."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


class TorchNetwork(TorchSmoothable):
    """A `slimrun.ops.calibration.base.GradientNetwork`; `forward` runs one sample, by default the model itself."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any] | None = None, room: Room | None = None) -> None:
        super().__init__(model, room or Room())
        unstack(self.model)
        self.forward = forward or model
        self.parts = 0  # in which it runs, once they are told

    def kept(self) -> dict[str, str]:
        """Gates and routers, which stay float."""
        return float_linears(self.model)

    def quantized(self) -> list[str]:
        """Names of the quantized linears, in module order."""
        return [name for name, module in self.model.named_modules() if isinstance(module, QuantizedLinear)]

    def used_otherwise(self, names: Sequence[str], run: Callable[[], Any]) -> dict[str, str]:
        """Linear -> why it cannot be replaced: what the model does with it beside calling it, while `run` runs."""
        linears: Any = {name: self.model.get_submodule(name) for name in names}
        with watched_use(linears) as reasons:
            run()
        return reasons

    @contextmanager
    def linear(self, name: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Weight and bias, where they lie."""
        linear = self.model.get_submodule(name)
        assert isinstance(linear, nn.Linear | nn.Embedding)
        bias = getattr(linear, "bias", None)
        yield linear.weight.detach(), None if bias is None else bias.detach().clone()
        self.room.release([linear.weight])

    def replace(self, name: str, linear: nn.Module) -> Callable[[], None]:
        """Put a quantized linear in the place of the one that is there; calling what is returned puts it back."""
        old = self.model.get_submodule(name)
        take_over(old, linear)
        parent, _, child = name.rpartition(".")
        owner = self.model.get_submodule(parent)
        setattr(owner, child, linear)
        release_after_use(linear, self.room)
        return lambda: setattr(owner, child, old)

    def tables(self, sample: Sample | None) -> list[Table]:
        """Embeddings and output layer; on the first tokens of the sample the model shows what it does with them."""
        named = tables(self.model)
        if sample is None or not named:
            return named
        places = [place for table in named if not table.kept for place in table.places]
        watched: Any = {place: self.model.get_submodule(place) for place in places}
        with torch.no_grad(), watched_use(watched) as misused:
            self.glance(sample)
        reasons = {table.name: next(filter(None, map(misused.get, table.places)), table.kept) for table in named}
        return [replace(table, kept=reasons[table.name]) for table in named]

    def replace_table(self, table: Table, quantized: QuantizedLinear) -> None:
        """Put a quantized table in all places of the float one."""
        for place in table.places:
            self.replace(place, quantized)

    def leave(self, count: int) -> None:
        """Copy the float tensors that stay, where they are the smaller part beside `count` numbers that went.

        They were read as parts of mapped files, which stay in memory whole, changed pages included, until the last is
        gone. Where memory is short those pages leave it anyway.
        """
        kept = [parameter for parameter in self.model.parameters() if parameter.device.type == "cpu"]
        if not self.room.full and sum(parameter.numel() for parameter in kept) <= count:
            move(kept, Tensor.clone)
        give_back()

    @contextmanager
    def watching(self, watchers: Mapping[str, Watcher]) -> Iterator[None]:
        """Meanwhile each linear's input goes to its watcher before the linear computes."""
        handles = [
            self.model.get_submodule(name).register_forward_pre_hook(reports_input(self._blocks.while_live(watcher)))
            for name, watcher in watchers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(self, sample: Sample) -> Any:
        """The model on one sample: `model(*sample)` or `model(**sample)`; compiled parts run as they were written."""
        eager = torch.compiler.set_stance("force_eager") if _has_compiled(self.model) else nullcontext()
        with eager, fast_linears(*_kind(self.model)):
            return self.forward(**sample) if isinstance(sample, Mapping) else self.forward(*sample)

    def tell_parts(self, sample: Sample) -> int:
        """In how many parts the model can run, tried out on a sample."""
        self.parts = self._blocks.tell(blocks_of(self.model), partial(self.run, sample), self._same)
        return self.parts

    def _same(self, one: Any, other: Any) -> bool:
        return torch.equal(self.first_tensor(one), self.first_tensor(other))

    def run_part(self, part: int, sample: Sample, state: Any, *, blocks_alone: bool = False) -> Any:
        """One part of the model on one sample, given what the part before gave of it."""
        return self._blocks.run(part, partial(self.run, sample), state, blocks_alone=blocks_alone)

    def in_blocks(self, names: Iterable[str]) -> bool:
        """Whether all linears of these names are in blocks."""
        return self._blocks.have(map(self.model.get_submodule, names))

    def leave_part(self, part: int) -> None:
        """A part has run for all samples: what files have of its weights leaves memory."""
        for block in self._blocks.blocks[max(0, part - 1) : part]:
            release([*block.parameters(), *block.buffers()])

    def states(self, sample: Sample) -> Tensor:
        """The last hidden states [1, T, H] of a sample, before the output layer."""
        states = _base(self.model)(**_tokens(sample)).last_hidden_state
        assert isinstance(states, Tensor)
        return states

    def states_part(self, part: int, sample: Sample, state: Any) -> Tensor:
        """One part of `states`, given what the part before gave."""
        return self.part_of(part, partial(self.states, sample), state)

    def part_of(self, part: int, run: Callable[[], Tensor], state: Any) -> Tensor:
        """One part of what `run` runs of the model, given what the part before gave."""
        out = self._blocks.run(part, run, state)
        assert isinstance(out, Tensor)
        return out

    @property
    def live(self) -> bool:
        """Whether what runs is the part that was asked for."""
        return self._blocks.live

    def glance(self, sample: Sample) -> Any:
        """The whole model on the first tokens of a sample, for what any tokens show."""
        return self.model(**_first_tokens(_tokens(sample)))

    def head(self) -> nn.Module:
        """The output layer: hidden states -> logits."""
        layer = output_layer(self.model)
        assert isinstance(layer, nn.Module)
        return layer


def _has_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has a part of the model: hooks on what is in it would not be seen."""
    return any(
        uncompiled(part) is not part or getattr(part, "_compiled_call_impl", None) is not None  # by its own `compile()`
        for part in model.modules()
    )


def _kind(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of the first numbers that are no integers; float32 of the processor where there are none."""
    floats = (one for one in chain(model.parameters(), model.buffers()) if one.is_floating_point())
    first = next(floats, torch.zeros(0))
    return first.dtype, first.device


def _first_tokens(tokens: dict[str, Any]) -> dict[str, Any]:
    length = tokens["input_ids"].shape[1]
    return {
        key: value[:, :GLANCE] if isinstance(value, Tensor) and value.shape[1:2] == (length,) else value
        for key, value in tokens.items()
    }


def _base(model: Any) -> Any:
    """What gives the hidden states."""
    if getattr(model, "base_model", None) is None:
        raise ValueError(f"{type(model).__name__} is no language model of transformers: it has no base_model")
    return model.base_model


def _tokens(sample: Sample) -> dict[str, Any]:
    """A sample by keyword, without a cache: blocks run again for their gradients, which would fill it twice."""
    named = dict(sample) if isinstance(sample, Mapping) else {"input_ids": sample[0]} if len(sample) == 1 else {}
    if not isinstance(named.get("input_ids"), Tensor):
        raise ValueError("a sample is no text whose gradients can be taken; give {'input_ids': Tensor[1, T], ...}")
    return {**named, "use_cache": False}
