"""What errors cost, measured: the Fisher statistics of a model, part by part of it, and their factors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slimrun.ops.calibration.base import Arrays, Sample, call, silent
from slimrun.ops.calibration.blocks import PassedBy
from slimrun.ops.calibration.rdoq import calibrator as rdoq
from slimrun.ops.calibration.rdoq import gradients
from slimrun.ops.calibration.rdoq.factors import Factors
from slimrun.ops.calibration.rdoq.fisher import FisherStatistics, measure
from slimrun.ops.calibration.rdoq.head import head_gradient, surprise
from slimrun.ops.calibration.rdoq.inputs import new_inputs, worst_groups
from slimrun.ops.calibration.rdoq.statistics import Statistics
from slimrun.ops.format import products
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.ops.framework.pytorch.network import TorchNetwork
from slimrun.ops.memory import Room
from slimrun.ops.model.linears import linear_names
from slimrun.ops.quant.feedback import importance
from slimrun.ops.quant.rdoq import RDOQ

from ..conftest import tiny
from .test_rate_distortion import CHANGES, calibrator


def measured(model: TorchModel, *lengths: int, in_parts: bool = False, alike: bool = False) -> Statistics:
    """The statistics of samples of these lengths."""
    module = model.module
    samples: list[Sample] = [{"input_ids": torch.arange(3, 3 + length).unsqueeze(0)} for length in lengths or [40]]
    names = list(linear_names(module))[:-1]
    with torch.no_grad():
        network = TorchNetwork(module)
        parts = network.tell_parts(samples[0]) if in_parts else 1
        return measure(network, names, samples, parts, Room(), call, silent, alike=alike)


def test_tokens_and_rows_may_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "fast_bfloat16", lambda device: False)
    model = tiny(**CHANGES)
    statistics = measured(model, alike=True)
    name, inputs = "model.layers.1.mlp.gate_proj", []
    handle = model.module.get_submodule(name).register_forward_pre_hook(lambda _, given: inputs.append(given[0][0]))
    with torch.no_grad():
        model.module(input_ids=torch.arange(3, 43).unsqueeze(0))
    handle.remove()
    torch.testing.assert_close(statistics.moment(name), inputs[0].t() @ inputs[0] / 40, rtol=1e-4, atol=1e-6)
    assert set(arrays(statistics)[f"{name}.rows"].tolist()) == {1.0}


def test_weights_are_converted_once_for_all_samples_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Counter[int] = Counter()
    convert = gradients.for_products

    def counted(tensor: Tensor) -> Tensor:
        times[tensor.data_ptr()] += 1
        return convert(tensor)

    monkeypatch.setattr(gradients, "for_products", counted)
    model = tiny(num_hidden_layers=3)
    measured(model, 40, 30, 20, in_parts=True)
    layers = [
        {times[linear.weight.data_ptr()] for linear in layer.modules() if isinstance(linear, torch.nn.Linear)}
        for layer in model.module.model.layers
    ]
    assert layers == [{2}, {2}, {1}]  # forward and back; the last one has no way forward of its own


def arrays(statistics: Statistics) -> dict[str, Tensor]:
    """All that was found, but for which part it was in."""
    return {key: part[key] for part in statistics.by_part for key in part if key != "part"}


def test_statistics_are_those_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "fast_bfloat16", lambda device: False)
    model = tiny(**CHANGES)
    statistics = measured(model)
    by_name = arrays(statistics)
    # by hand, for one linear
    name, gate = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj"
    kept: dict[str, Tensor] = {}
    linear = model.module.get_submodule(name)
    handle = linear.register_forward_hook(lambda _, x, out: kept.update(x=x[0], out=out) or out.retain_grad())
    logits = model.module(input_ids=torch.arange(3, 43).unsqueeze(0)).logits[0]
    handle.remove()
    logits.backward(surprise(logits.detach(), torch.Generator().manual_seed(0)))
    assert kept["out"].grad is not None
    x, gradient = kept["x"].detach()[0], kept["out"].grad[0]
    length = gradient.square().sum(dim=1)
    torch.testing.assert_close(by_name[f"{name}.rows"], length.pow(-0.5) @ gradient.square())
    assert statistics.first[name] == gate
    assert f"{name}.moment" not in by_name
    weights = by_name[f"{gate}.weights"].unsqueeze(1)
    moment = statistics.moment(gate)
    torch.testing.assert_close(moment, x.t() @ (x * weights), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(by_name[f"{gate}.reach"], x.abs().amax(dim=0), rtol=1e-6)
    np.testing.assert_allclose(
        by_name["states.0"] @ model.module.lm_head.weight.detach().numpy().T, logits.detach(), atol=1e-5
    )
    assert all(not parameter.grad_fn for parameter in model.module.parameters())


def test_statistics_are_the_same_part_by_part() -> None:
    changes = {**CHANGES, "num_hidden_layers": 3}
    whole, in_parts = measured(tiny(**changes), 40, 7, 25), measured(tiny(**changes), 40, 7, 25, in_parts=True)
    assert (whole.parts, in_parts.parts) == (1, 4)
    expected, by_part = arrays(whole), arrays(in_parts)
    assert by_part.keys() == expected.keys()
    for key, array in expected.items():
        assert torch.equal(by_part[key], array), key


def test_gradients_past_the_states_are_taken_of_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def states_part(network: TorchNetwork, part: int, sample: Sample, state: Any) -> Tensor:
        tried.append(part)
        raise PassedBy

    tried: list[int] = []
    in_parts, whole = tiny(), tiny()
    calibrator(in_parts).quantize()
    monkeypatch.setattr(TorchNetwork, "states_part", states_part)
    calibrator(whole).quantize()
    assert tried == [0]
    for key, tensor in whole.tensors().items():
        assert torch.equal(tensor, in_parts.tensors()[key]), key


def test_labels_are_drawn_from_what_the_model_says() -> None:
    share = torch.tensor([0.5, 0.0, 0.3, 0.2])
    gradients = surprise(share.log().expand(20_000, 4), torch.Generator().manual_seed(0))
    drawn = share - gradients  # the labels, one-hot
    torch.testing.assert_close(drawn.mean(dim=0), share, rtol=0, atol=0.01)
    assert torch.equal(drawn.round().sum(dim=1), torch.ones(20_000))


def test_gradients_of_the_head_do_not_depend_on_the_chunks() -> None:
    states = torch.randn(1, 10, 8, generator=torch.Generator().manual_seed(0))
    head = torch.nn.Linear(8, 30)

    def slope(logits: Tensor, where: slice) -> Tensor:
        return logits.softmax(dim=-1) * torch.arange(10.0)[where].unsqueeze(1)

    expected = states.clone().requires_grad_()
    (torch.logsumexp(head(expected), dim=-1) @ torch.arange(10.0)).sum().backward()
    for chunk in (3, 10):
        torch.testing.assert_close(head_gradient(states, head, slope, chunk), expected.grad)


def test_what_is_known_of_some_parts_is_not_measured_again(tmp_path: Path) -> None:
    """Those that are not known are what they would be."""
    computed: list[str] = []

    def remember(compute: Callable[[], Arrays], part: str = "") -> Arrays:
        file = tmp_path / f"{part[:11]}.npz"
        if not file.exists():
            computed.append(part)
            np.savez(file, **compute())
        stored: Arrays = np.load(file)
        return stored

    one, other = tiny(), tiny()
    calibrator(one).quantize(remember)
    assert [part[:11] for part in computed] == ["part 2 of 3", "part 1 of 3", "part 0 of 3", "corrections"]
    (tmp_path / "part 1 of 3.npz").unlink()
    calibrator(other).quantize(remember)
    assert computed[4:] == ["part 1 of 3"]
    for key, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[key]), key


@pytest.mark.parametrize("room", [Room(), Room(0)])
def test_factors_come_back_from_where_there_is_room(room: Room) -> None:
    factors = Factors(room)
    known = importance(torch.eye(300) + 0.1, torch.ones(4), 0.1)
    factors["a"] = known
    factors.rows |= {"a": ("a", torch.ones(4)), "b": ("a", torch.full((5,), 2.0))}
    factors.corrections["b"] = 3.0
    assert "b" in factors
    assert "c" not in factors
    factors.leave("b")
    kept = factors["b"]
    assert torch.equal(kept.factor, known.factor)
    assert torch.equal(kept.order, known.order)
    assert torch.equal(kept.rows, torch.full((5,), 2.0))
    assert torch.equal(factors.slope("b"), kept.slope)


def test_where_things_lie_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory, in_files = tiny(), tiny()
    calibrator(in_memory).run()
    monkeypatch.setattr(rdoq, "BESIDE", 0)
    bounded = calibrator(in_files)
    bounded.run()
    assert bounded.room.full
    for key, tensor in in_memory.tensors().items():
        assert torch.equal(tensor, in_files.tensors()[key]), key


def test_known_statistics_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Arrays] = {}

    def remember(compute: Callable[[], Arrays], part: str = "") -> Arrays:
        if part not in kept:
            kept[part] = compute()
        return kept[part]

    first, second = tiny(), tiny()
    calibrator(first).quantize(remember)
    monkeypatch.setattr(FisherStatistics, "_part_arrays", None)
    other = calibrator(second, RDOQ(target_bits=4.0))
    other.quantize(remember)
    assert second.quantized() == first.quantized()


def test_the_worst_inputs_are_taken_by_whole_groups() -> None:
    losses = {"q": 5.0, "k": 1.0, "v": 3.0, "o": 2.0, "gate": 4.0, "up": 2.0, "down": 1.0}
    first = {"q": "q", "k": "q", "v": "q", "o": "o", "gate": "gate", "up": "gate"}  # a glance did not reach down
    assert worst_groups(losses, first, 0) == ([], 3.0)
    assert worst_groups(losses, first, 1) == ([["o"]], 3.0)
    assert worst_groups(losses, first, 2) == ([["gate", "up"]], 3.0)
    # the pair is too large for the one that is left
    assert worst_groups(losses, first, 4) == ([["q", "k", "v"], ["o"]], 3.0)
    assert worst_groups(losses, first, 6) == ([["q", "k", "v"], ["gate", "up"], ["o"]], 1.0)
    assert worst_groups(losses, first, 99)[1] == math.inf


def test_inputs_take_the_first_that_costs_little_enough() -> None:
    costs = {"dynamic": {"q": 1.0, "k": 3.0}, "float": {"q": 0.0, "k": 0.0}}
    assert new_inputs(["q", "k"], ["dynamic", "float"], costs, 2.0) == "dynamic"
    assert new_inputs(["q", "k"], ["dynamic", "float"], costs, 1.9) == "float"
    assert new_inputs(["q", "k"], ["dynamic"], costs, 0.0) == "dynamic"
    assert new_inputs(["q", "k"], ["float"], costs, math.inf) == "float"


def test_other_tokens_may_be_routed_to_an_expert_once_inputs_have_grids() -> None:
    layers = calibrator(tiny(model_type="mixtral", num_local_experts=4), RDOQ(target_bits=4.5)).run()
    experts = [layer for layer in layers if "experts" in layer.name and layer.quantized and not layer.float_inputs]
    assert experts
    assert all(layer.input_loss > 0 for layer in experts)
