"""quant=rdoq over the whole file: what errors in tables cost, and a weight file of the size that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from slimrun.ops.calibration.rdoq.head import Teacher, divergence
from slimrun.ops.calibration.rdoq.lookups import Lookups
from slimrun.ops.calibration.rdoq.statistics import Statistics
from slimrun.ops.calibration.rdoq.table import Cost, Tables, head_cost, lookup_cost
from slimrun.ops.format.arithmetic import QuantizedWeight
from slimrun.ops.format.weights import round_to_grid
from slimrun.ops.framework.pytorch import PyTorch
from slimrun.ops.memory import Room
from slimrun.ops.quant.rdoq import RDOQ, Fallback

from ..conftest import CPU, TEXTS, tiny
from .test_tables import written

SIZES = {"vocab_size": 2000, "hidden_size": 128}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize(
    ("changes", "knobs"),
    [
        ({"tie_word_embeddings": True}, {"target_file_bits": 4.5}),
        ({"tie_word_embeddings": False}, {"target_file_bits": 5.0, "activations": "float"}),
    ],
)
def test_the_weight_file_has_the_size(tmp_path: Path, changes: dict[str, Any], knobs: dict[str, Any]) -> None:
    model = tiny(**SIZES, **changes)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    quantizer = RDOQ(**knobs, fallback=Fallback(0.0), tune_rate=0.0, measured_prompts=2)
    written(tmp_path / "b", PyTorch(), model, quantizer)
    [file] = (tmp_path / "b").glob("*.safetensors")
    assert 8 * file.stat().st_size / parameters == pytest.approx(quantizer.target_file_bits, rel=0.01)
    head = "model.embed_tokens" if changes["tie_word_embeddings"] else "lm_head"
    restored = PyTorch().restore(tmp_path / "b", CPU)
    assert restored.logits_checksum() == model.logits_checksum()
    steps = restored.tensors()[f"{head}.weight_scale"]
    assert torch.equal(steps, steps.bfloat16().float()), "short, so that the file has them in little more than a byte"
    assert f"{head}.weight_scale" in load_file(file)


def test_tokens_that_come_get_finer_steps() -> None:
    model = tiny(**SIZES)
    PyTorch().calibrator(model, RDOQ(target_file_bits=4.5, tune_rate=0.0, measured_prompts=0), TEXTS, 64).run()
    steps = model.tensors()["model.embed_tokens.weight_scale"].reshape(-1)
    seen = sorted({token for text in TEXTS for token in model.encode(text)})
    assert float(steps[seen].log().mean()) < float(steps.log().mean()) - 0.2


def test_the_cost_of_the_head_is_the_curvature_of_the_loss() -> None:
    """Of small errors in one row: half the second derivative of KL, but for the tempering, which one token has not."""
    head, states = nn.Linear(6, 9, bias=False).requires_grad_(False), normal(1, 6)
    head.weight.copy_(normal(9, 6))
    cost, expected = head_cost(Teacher([], [states], head), head.weight)
    shares = head(states).softmax(dim=-1)[0]
    torch.testing.assert_close(expected, shares)
    tempered = (shares * (1 - shares)).sum().sqrt()
    changed = nn.Linear(6, 9, bias=False).requires_grad_(False)
    for row in range(9):
        error, lost = 0.1 * normal(6), 0.0
        for sign in (1, -1):  # what is odd in the error cancels
            changed.weight.copy_(head.weight).index_add_(0, torch.tensor([row]), sign * error.unsqueeze(0))
            lost += divergence(head, states, changed, states) / 2
        estimate = float(cost.rows[row] * tempered * (error @ cost.moment @ error)) / 2
        assert lost == pytest.approx(estimate, rel=0.1)


def test_rows_of_tokens_that_never_came_cost_what_the_model_expects() -> None:
    lookups = Lookups()
    lookups.add(1, normal(1, 2, 4))
    lookups.add(0, normal(1, 3, 4))
    statistics = Statistics({}, [{key: tensor.numpy() for key, tensor in lookups.arrays().items()}], 1, Room())
    samples = [{"input_ids": torch.tensor([[5, 5, 2]])}, {"input_ids": torch.tensor([[2, 7]])}]
    expected = torch.arange(10.0) / 45
    cost = lookup_cost(statistics, samples, [0, 1], expected, 4)
    weights = torch.cat([normal(1, 3, 4)[0], normal(1, 2, 4)[0]]).square().sum(dim=1).sqrt()
    assert float(cost.rows.sum()) == pytest.approx(float(weights.sum()), rel=1e-5)
    assert float(cost.rows[9]) == pytest.approx(float(weights.sum()) * 9 / 45 / 2, rel=1e-5)
    assert float(cost.moment.trace()) == pytest.approx(1, rel=0.01)  # products may be of bfloat16
    assert float(lookup_cost(statistics, samples, [0], expected, 4).rows[7]) == pytest.approx(
        float(weights[:3].sum()) * 7 / 45 / 2, rel=1e-5
    ), "token 7 comes in sample 1 alone"


@torch.no_grad()
def test_a_rounded_table_is_measured_and_the_model_stays_float() -> None:
    model = tiny(**SIZES, initializer_range=0.1)
    calibrator: Any = PyTorch().calibrator(model, RDOQ(target_file_bits=4.5), TEXTS, 64)
    tables = Tables(calibrator.network, {}, calibrator.samples, asked=True)
    states = [calibrator.network.states(sample).flatten(0, -2) for sample in calibrator.samples]
    teacher = Teacher(calibrator.samples, states, model.module.lm_head)
    [(name, weight)] = tables.weights.items()
    spread = float(weight.std())
    rounded = {}
    for step in (0.2, 0.05):
        scale = torch.full((len(weight), 1), step * spread)
        rounded[step] = QuantizedWeight(round_to_grid(weight, scale), scale)
    coarse, fine = (tables.share(name, rounded[step], teacher) for step in (0.2, 0.05))
    assert coarse == pytest.approx(16 * fine, rel=0.3)
    assert model.module.lm_head is teacher.head
    assert Tables(calibrator.network, {}, calibrator.samples, asked=False).weights == {}


def test_costs_of_a_tied_table_add() -> None:
    one, two = Cost(torch.tensor([1.0, 2.0]), torch.eye(3)), Cost(torch.tensor([3.0, 0.0]), 4 * torch.eye(3))
    both = one + two
    error = normal(2, 3)
    expected = sum(float(((error @ cost.moment) * error).sum(dim=1) @ cost.rows) for cost in (one, two))
    assert float(((error @ both.moment) * error).sum(dim=1) @ both.rows) == pytest.approx(expected)


def test_costs_of_a_tied_table_are_tempered_alike() -> None:
    one, two = (Cost(torch.ones(2), torch.eye(3), tempering) for tempering in (0.5, 8.0))
    assert (one + two).rows.tolist() == pytest.approx([17.0, 17.0])  # squared gradients: 1 + 16
    assert (one + two).tempering == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target_bits": 3.5}, "target_bits and quant.target_file_bits both say how large"),
        ({"embeddings": "int8"}, "target_file_bits=4.0 rounds embeddings and output head itself"),
        ({"ignore_last_linear": False}, "target_file_bits=4.0 rounds embeddings and output head itself"),
    ],
)
def test_two_sizes_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RDOQ(target_file_bits=4.0, **given)


def test_a_size_out_of_reach_is_named_as_it_was_typed() -> None:
    calibrator = PyTorch().calibrator(tiny(), RDOQ(target_file_bits=1.5, measured_prompts=0), TEXTS, 64)
    with pytest.raises(ValueError, match=r"target_file_bits=1.5 is out of reach"):
        calibrator.quantize()
