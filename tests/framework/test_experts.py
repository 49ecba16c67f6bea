"""Which weights of a mixture are experts', and which linears choose among them."""

from __future__ import annotations

import re

import pytest
from torch import nn

from slimrun.ops.calibration.sequential import SequentialCalibrator
from slimrun.ops.framework.pytorch.network import TorchNetwork
from slimrun.ops.model.linears import expert_parameters, float_linears, linear_names
from slimrun.ops.quant.w8a16 import W8A16

from .architectures import DENSE, MIXTURES, empty

ROUTERS = {  # those that are linears; the others are modules of their own
    "qwen2_moe": {"model.layers.N.mlp.shared_expert_gate"},
    "phimoe": {"model.layers.N.mlp.router"},
    "jetmoe": {"model.layers.N.mlp.router.layer", "model.layers.N.self_attention.experts.router.layer"},
    "llama4_text": {"model.layers.N.feed_forward.router"},
    "hunyuan_v1_moe": {"model.layers.N.mlp.gate.wg"},
}
EXPERTS = {  # layers * experts * matrices * channels * inner ones, where they are not those of most
    "qwen2_moe": 2 * 4 * 3 * 64 * 64,
    "deepseek_v3": 1 * 8 * 3 * 64 * 64,
    "jetmoe": 2 * 4 * (3 * 64 * 128 + 2 * 64 * 32),  # its attention is a mixture too
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_and_routers_of_a_mixture(kind: str) -> None:
    model = empty(kind)
    experts = sum(parameter.numel() for parameter in expert_parameters(model).values())
    assert experts == EXPERTS.get(kind, 2 * 4 * 3 * 64 * 128)
    assert {re.sub(r"\.\d+", ".N", name) for name in float_linears(model)} == ROUTERS.get(kind, set())


@pytest.mark.parametrize("kind", DENSE)
def test_a_dense_model_has_neither(kind: str) -> None:
    assert expert_parameters(empty(kind)) == {}
    assert float_linears(empty(kind)) == {}


class Expert(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))


class Mixture(nn.Module):
    """As models that bring their own code have it: a list of experts, a gate beside, one of a shared expert."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert() for _ in range(4))
        self.chooser = nn.Linear(8, 4)
        self.shared = Expert()
        self.shared_gate = nn.Linear(8, 1)
        self.out = nn.Linear(8, 8)


def test_a_list_of_experts_is_linears_and_only_its_routers_stay_float() -> None:
    model = Mixture()
    assert expert_parameters(model) == {}
    assert float_linears(model).keys() == {"chooser", "shared_gate"}
    calibrator = SequentialCalibrator(TorchNetwork(model), W8A16(), [])
    layers = calibrator.run()
    assert [layer.name for layer in layers if not layer.quantized] == ["chooser", "shared_gate", "out"]
    assert [layer.note.partition(":")[0] for layer in layers if layer.note] == [
        "router of a mixture of experts",
        "one output",
    ]
    assert len(layers) == len(linear_names(Mixture()))
