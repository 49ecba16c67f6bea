"""Linears of half precision where the processor has no kernel for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slimrun.ops.format import products
from slimrun.ops.format.products import fast_linears, linear

from ..conftest import tiny

HALVES = [torch.float16, torch.bfloat16]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _all_halves_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "slow", lambda dtype: dtype in HALVES)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("few", [0, 100])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (2, 65, 40)])
def test_sums_are_rounded_once(
    shape: tuple[int, int, int], few: int, bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "AT_ONCE", 64)
    monkeypatch.setattr(products, "FEW", few)
    tokens, rows, columns = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, tokens, columns, generator=generator).to(dtype)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    more = torch.randn(rows, generator=generator).to(dtype) if bias else None
    out = linear(x, weight, more)
    exact = nn.functional.linear(x.double(), weight.double(), None if more is None else more.double())
    assert out.dtype == dtype
    assert out.shape == exact.shape
    half_a_step = torch.finfo(dtype).eps / 2
    assert bool(((out.double() - exact).abs() <= half_a_step * exact.abs() + 1e-5).all())


@pytest.mark.parametrize("dtype", HALVES)
def test_the_way_back_finds_the_weights_that_it_went_with(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "AT_ONCE", 10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(products.FEW, 5, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(7, 5, generator=generator).to(dtype).requires_grad_()
    with torch.enable_grad():
        linear(x, weight).float().square().sum().backward()
    out = x.detach().double() @ weight.detach().double().T
    assert x.grad is not None
    assert weight.grad is not None
    close = {"rtol": 0.05, "atol": 0.2}
    torch.testing.assert_close(x.grad.double(), 2 * out @ weight.detach().double(), **close)
    torch.testing.assert_close(weight.grad.double(), 2 * out.T @ x.detach().double(), **close)


@pytest.mark.parametrize("dtype", HALVES)
def test_whatever_calls_for_a_linear_meanwhile(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[torch.dtype] = []

    def counted(x: torch.Tensor, *others: Any) -> torch.Tensor:
        called.append(x.dtype)
        return linear(x, *others)

    monkeypatch.setattr(products, "linear", counted)
    module, x = nn.Linear(4, 3, dtype=dtype), torch.ones(2, 4, dtype=dtype)
    with fast_linears(dtype, CPU):
        module(x)
    assert called == [dtype]
    module(x)
    with fast_linears(torch.float32, CPU), fast_linears(dtype, torch.device("meta")):
        module(x)
    assert called == [dtype]
    model = tiny(str(dtype).removeprefix("torch."), num_hidden_layers=2)
    called.clear()
    states = model.hidden(np.array([model.encode("hi there")]))
    model.log_probs(states[0])
    assert called == [dtype] * (2 * 7 + 1)
    called.clear()
    model.generate([model.encode("hi")], 2)
    assert len(called) >= 2 * (2 * 7 + 1)
    model.continuations(model.encode("hi"), [model.encode(" there")])
    assert set(called) == {dtype}


@pytest.mark.parametrize("bias", [False, True])
def test_a_tall_matrix_is_multiplied_in_parts(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    module, x = nn.Linear(5, 7, bias=bias), torch.randn(products.FEW, 5, generator=generator)
    whole = module(x)
    monkeypatch.setattr(products, "TALL", 3)
    parts: list[int] = []
    product = nn.functional.linear
    monkeypatch.setattr(
        nn.functional, "linear", lambda x, weight, *more: parts.append(len(weight)) or product(x, weight, *more)
    )
    assert torch.allclose(linear(x, module.weight, module.bias), whole, atol=1e-6)
    assert parts == [3, 3, 1]
    parts.clear()
    linear(x[1:], module.weight)  # too few tokens
    assert parts == [7]


def test_the_output_head_is_such_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("float32", num_hidden_layers=2)
    prompt, option = model.encode("hi there"), model.encode(" you")
    heads: list[int] = []
    monkeypatch.setattr(
        products, "linear", lambda x, weight, *more: heads.append(len(weight)) or linear(x, weight, *more)
    )
    model.log_probs(model.hidden(np.array([prompt]))[0])
    model.continuations(prompt, [option])
    before = len(heads)
    model.generate([prompt], 3)
    assert before == 2
    assert len(heads) > before
    assert set(heads) == {model.module.config.vocab_size}
