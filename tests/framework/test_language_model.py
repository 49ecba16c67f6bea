"""Scoring and generation against the plain way of computing the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from slimrun.ops.framework.base import Device
from slimrun.ops.framework.pytorch import PyTorch, TorchModel
from slimrun.ops.framework.pytorch.language_model import check_output_head
from tests.conftest import described, tiny


def test_byte_tokenizer_keeps_any_text(tiny_model: TorchModel) -> None:
    for text in ("plain", "今天天气很好。", "naïve\n\ttabs"):
        assert tiny_model.decode(tiny_model.encode(text)) == text


def test_an_architecture_that_scales_its_logits_is_refused(tiny_model: TorchModel) -> None:
    original = tiny_model.module.forward

    def scaled(*args: object, **kwargs: object) -> object:
        out = original(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    tiny_model.module.forward = scaled
    with pytest.raises(ValueError, match="changes its logits after the output layer"):
        check_output_head(tiny_model)


def test_output_head_stays_float_when_the_model_is_quantized(tiny_model: TorchModel) -> None:
    from slimrun.ops.framework.pytorch import Calibrator
    from slimrun.ops.quant.w8a8 import W8A8

    head, hidden = tiny_model.output_head(), tiny_model.hidden(np.array([[5, 6, 7]]))[0]
    expected = head(hidden)
    Calibrator(tiny_model.module, W8A8(ignore_last_linear=False), [{"input_ids": torch.tensor([[5, 6, 7]])}]).run()
    np.testing.assert_array_equal(head(hidden), expected)


def test_head_rows_are_what_logits_are_made_of(tiny_model: TorchModel) -> None:
    hidden, rows = tiny_model.hidden(np.array([[5, 6, 7]]))[0], tiny_model.head_rows()
    assert rows is not None
    expected = torch.log_softmax(torch.from_numpy(hidden @ rows.T), dim=-1)
    np.testing.assert_allclose(tiny_model.log_probs(hidden), expected.numpy(), atol=1e-5)
    tiny_model.module.half()
    assert tiny_model.head_rows() is None, "logits of halves are rounded"


def test_many_batches_go_block_by_block_where_memory_has_no_room() -> None:
    bounded = PyTorch().load(described().open(Path("unused")), Device("cpu", "cpu", max_memory={"cpu": "8KiB"}))
    batches = [np.array([[5, 6, 7], [8, 9, 10]]), np.array([[11, 12]]), np.array([[13]])]
    ran: list[int] = []
    for number, layer in enumerate(bounded.module.model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    for states, ids in zip(bounded.hiddens(batches), batches, strict=True):
        np.testing.assert_array_equal(states, tiny().hidden(ids))
    assert ran[-6:] == [0, 0, 0, 1, 1, 1]
