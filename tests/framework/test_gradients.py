"""Gradients in little memory are the gradients, and leave the model as it was."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
import torch

from slimrun.ops.calibration.rdoq.gradients import RoundedLinear, gradients
from slimrun.ops.format import products
from slimrun.ops.format.arithmetic import QuantizedWeight

from ..conftest import tiny
from .chatglm import VOCABULARY
from .chatglm import chatglm as make_chatglm

IDS = torch.arange(3, 43).unsqueeze(0)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_they_are_those_of_autograd(bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "fast_bfloat16", lambda device: bfloat16)
    model = tiny(tie_word_embeddings=False, attention_bias=True).module
    chosen = model.model.layers[0].self_attn.q_proj.weight
    model(input_ids=IDS).logits.square().mean().backward()
    expected = chosen.grad.clone()
    model.zero_grad()
    with gradients(model, [chosen]):
        model(input_ids=IDS).logits.square().mean().backward()
    distance = float((chosen.grad - expected).norm() / expected.norm())
    assert distance < (0.03 if bfloat16 else 1e-5)
    assert distance > 0 or not bfloat16
    assert [name for name, one in model.named_parameters() if one.grad is not None] == [
        "model.layers.0.self_attn.q_proj.weight"
    ]


@pytest.mark.parametrize("architecture", ["llama", "chatglm"])
def test_blocks_run_again_and_everything_is_put_back(architecture: str) -> None:
    if architecture == "llama":
        model = tiny(tie_word_embeddings=False).module
        run = partial(model, input_ids=IDS, use_cache=False)
    else:
        model = make_chatglm()
        run = partial(model, torch.randint(0, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(0)))
    linear = [one for one in model.modules() if isinstance(one, torch.nn.Linear)][2]
    times: list[bool] = []
    linear.register_forward_pre_hook(lambda *_: times.append(torch.is_grad_enabled()))
    before = {one: dict(vars(one)) for one in model.modules()}
    with torch.no_grad():
        reference = run().logits
    with suppress(KeyboardInterrupt), gradients(model, [linear.weight]) as blocks:
        run().logits.sum().backward()
        assert len(blocks) == 2
        assert times == [False, True, True]
        raise KeyboardInterrupt
    assert all(vars(one).get("forward") == held.get("forward") for one, held in before.items())
    assert all(one.requires_grad for one in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(run().logits, reference, rtol=0, atol=0)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_integers_are_multiplied_exactly(bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "fast_bfloat16", lambda device: bfloat16)
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (7, 16), generator=generator).to(torch.int8)
    scale = torch.rand(7, 1, generator=generator)
    product = RoundedLinear(QuantizedWeight(values, scale)).product(torch.eye(16))
    torch.testing.assert_close(product, (values * scale).t(), rtol=1e-6, atol=0)
    large = torch.full((1, 16), 3000.0, dtype=torch.float16)
    loud = RoundedLinear(QuantizedWeight(torch.full((7, 16), 127, dtype=torch.int8), torch.full((7, 1), 1e-3)))
    near = 1e-2 if bfloat16 else 2e-3  # float16 is multiplied as bfloat16 then
    torch.testing.assert_close(loud.product(large).float(), torch.full((1, 7), 16 * 381.0), rtol=near, atol=0)
