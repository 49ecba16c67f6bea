"""Block by block gives what the whole model gives, and models whose blocks cannot be told run as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from slimrun.ops.calibration.blocks import PassedBy
from slimrun.ops.calibration.sequential import SequentialCalibrator
from slimrun.ops.calibration.states import Walk
from slimrun.ops.framework.base import Framework
from slimrun.ops.framework.pytorch.network import TorchNetwork
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.rdoq import RDOQ, Fallback
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8s import W8A8S

from ..conftest import CPU, TEXTS, described
from .chatglm import chatglm


class Block(nn.Module):
    """A residual block; `given` and `gives` are how it is called and what it returns."""

    def __init__(self, gives: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.gives = gives

    def forward(self, scale: float, hidden: Tensor) -> Any:
        return self.gives(hidden + scale * self.linear(hidden).tanh())


class Model(nn.Module):
    """Blocks between linears, the second of them between two blocks; `after` is what it does with all states."""

    _no_split_modules = ("Block",)

    def __init__(
        self, blocks: list[Block], after: Callable[[list[Tensor]], Tensor] = lambda states: states[-1]
    ) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(8, 8) for _ in range(3))
        self.blocks = nn.ModuleList(blocks)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        states = [self.first(x)]
        for index, block in enumerate(self.blocks):
            out = block(index + 1, hidden=states[-1])
            states.append(out[0] if isinstance(out, tuple) else out)
            if index == 0:
                states.append(self.middle(states[-1]))
        out = self.last(self.after(states))
        assert isinstance(out, Tensor)
        return out


def inputs(count: int = 3) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(1, 3 + number, 8, generator=generator),) for number in range(count)]


def parts(model: nn.Module) -> int:
    with torch.no_grad():
        return TorchNetwork(model).tell_parts(inputs()[0])


@pytest.mark.parametrize(
    "quantizer",
    [
        W8A8S(),
        W8A8S(observer="minmax", fallback_level=3, ignore_last_linear=False),
        W8A8(observer="histogram"),
        Lowbit(do_smooth=True, ignore_last_linear=False),
        RDOQ(target_bits=4.0, fallback=Fallback(0.2)),
    ],
)
def test_the_same_is_calibrated_as_sample_by_sample(
    quantizer: Quantizer, framework: Framework, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quantizer.needs_gradients and not framework.gives_gradients:
        pytest.skip("the framework gives no gradients")
    by_block, whole = (framework.load(described(num_hidden_layers=3).open(Path("unused")), CPU) for _ in range(2))
    one, other = (
        cast(SequentialCalibrator, framework.calibrator(model, quantizer, TEXTS, 64)) for model in (by_block, whole)
    )
    monkeypatch.setattr(other.network, "tell_parts", lambda sample: 1)
    layers = one.run()
    assert one._parts == 4
    assert other.run() == layers
    for key, tensor in whole.tensors().items():
        assert torch.equal(tensor, by_block.tensors()[key]), key


@pytest.mark.parametrize("gives", [lambda x: x, lambda x: (x,), lambda x: (x, None)])
def test_every_linear_is_seen_once_a_sample_in_the_order_of_the_samples(gives: Callable[[Tensor], Any]) -> None:
    model = Model([Block(gives) for _ in range(3)])
    network, samples = TorchNetwork(model), inputs()
    seen: dict[str, list[Tensor]] = {}
    names = list(network.linears())

    def watchers(kept: dict[str, list[Tensor]]) -> dict[str, Callable[[Tensor], None]]:
        return {name: kept.setdefault(name, []).append for name in names}

    expected: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        with network.watching(watchers(expected)):
            outputs = [network.run(sample) for sample in samples]
        assert network.tell_parts(samples[0]) == 4
        with network.watching(watchers(seen)):
            states: list[Any] = [None] * len(samples)
            for part in range(4):
                states = [network.run_part(part, sample, state) for sample, state in zip(samples, states)]
    assert all(map(torch.equal, states, outputs))
    assert all(len(seen[name]) == len(samples) and all(map(torch.equal, seen[name], expected[name])) for name in names)
    assert all("forward" not in vars(block) for block in model.blocks)


@pytest.mark.parametrize("name", ["blocks.0.linear", "blocks.2.linear"])
def test_what_follows_the_blocks_runs_only_where_it_is_watched(name: str) -> None:
    model, samples = Model([Block() for _ in range(3)]), inputs()
    network, seen, after = TorchNetwork(model), [], []  # type: ignore[var-annotated]
    with torch.no_grad():
        parts = network.tell_parts(samples[0])
        model.last.register_forward_pre_hook(lambda _, given: after.append(given[0]))
        for watched in ([name], [name, "last"]):
            seen.clear()
            with network.watching({one: seen.append for one in watched}):
                steps = list(Walk(network, samples, parts, watched=watched))
            assert steps[-1] == (parts * len(samples), parts * len(samples))
            assert len(seen) == len(samples) * len(watched)
            assert len(after) == len(samples) * (len(watched) - 1)
    assert not network.in_blocks([name, "middle"])


def test_blocks_that_cannot_be_told_run_as_one() -> None:
    shared = Block()
    assert parts(Model([Block(), Block()])) == 3
    assert parts(Model([shared, shared])) == 1
    assert parts(Model([Block(lambda x: (x, x.mean())), Block()])) == 3  # which nobody reads
    assert (
        parts(Model([Block() for _ in range(3)], lambda states: states[1] + states[-1])) == 1
    )  # a way around the blocks
    assert parts(nn.Sequential(nn.Linear(8, 8))) == 1


def test_custom_code_runs_block_by_block() -> None:
    model = chatglm()
    with torch.no_grad():
        assert TorchNetwork(model).tell_parts({"input_ids": torch.tensor([[5, 6, 7]])}) == 3


class Conditioned(nn.Module):
    """Two blocks that are given what a linear makes of the input beside their state."""

    _no_split_modules = ("Bilinear",)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.Bilinear(8, 8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        beside = state = self.first(x)
        for block in self.blocks:
            state = block(state, beside)
        return state


def test_gradients_past_the_state_are_noticed() -> None:
    network, [sample] = TorchNetwork(Conditioned()), inputs(1)
    with torch.no_grad():
        assert network.tell_parts(sample) == 3
        state = network.run_part(1, sample, network.run_part(0, sample, None))
    with pytest.raises(PassedBy):
        network.run_part(2, sample, state)
