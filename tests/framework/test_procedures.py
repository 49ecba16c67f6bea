"""Which procedure quantizes a model: the one that the method names, whoever asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from slimrun import Calibrator
from slimrun.ops.framework.pytorch import PyTorch
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.rdoq import RDOQ
from slimrun.ops.quant.w8a8s import W8A8S

from ..conftest import TEXTS, tiny

LENGTH = 64


@pytest.mark.parametrize("quantizer", [RDOQ(target_bits=3.0), W8A8S(fallback_level=1)])
@pytest.mark.parametrize("by_keyword", [True, False])
def test_the_public_calibrator_gives_what_a_run_gives(quantizer: Quantizer, by_keyword: bool) -> None:
    run, own = tiny(hidden_size=128), tiny(hidden_size=128)
    layers = PyTorch().calibrator(run, quantizer, TEXTS, LENGTH).run()
    ids = [torch.tensor([own.encode(text)[:LENGTH]]) for text in TEXTS]
    samples: list[Any] = [{"input_ids": one} if by_keyword else [one] for one in ids]
    calibrator = Calibrator(own.module, quantizer, samples)
    assert calibrator.run() == layers
    assert own.quantized() == run.quantized()
    for key, tensor in run.tensors().items():
        assert torch.equal(tensor, own.tensors()[key]), key


def test_what_gradients_cannot_be_taken_of_is_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match=r"give \{'input_ids': Tensor\[1, T\], \.\.\.\}"):
        Calibrator(model.module, RDOQ(), [{"inputs_embeds": torch.zeros(1, 4, 64)}]).run()
    with pytest.raises(ValueError, match=r"one_format=true: quant=rdoq keeps some inputs float"):
        Calibrator(model.module, RDOQ(), [], one_format=True)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match="Sequential"):
        Calibrator(plain, RDOQ(smooth_alpha=None), [{"input_ids": torch.zeros(1, 4)}]).run()
