"""Scoring and generation against the plain way of computing the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ops.framework.pytorch import TorchModel
from ops.framework.pytorch.language_model import check_output_head


def plain_log_probs(model: TorchModel, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([ids])).logits[0].float()
    return torch.log_softmax(logits, dim=-1).numpy()


def test_hidden_and_head_give_the_models_log_probs(tiny_model: TorchModel) -> None:
    ids = tiny_model.encode("some text of a few words")
    hidden = tiny_model.hidden(np.array([ids]))
    assert hidden.shape == (1, len(ids), 64)
    np.testing.assert_allclose(tiny_model.log_probs(hidden[0]), plain_log_probs(tiny_model, ids), atol=1e-5)


def test_continuations_share_a_prefix_and_equal_scoring_each_alone(tiny_model: TorchModel) -> None:
    prefix = tiny_model.encode("The answer is")
    options = [tiny_model.encode(text) for text in (" a", " something longer", " b!")]
    found = tiny_model.continuations(prefix, options)
    for option, scores in zip(options, found):
        whole = plain_log_probs(tiny_model, prefix + option)
        expected = [whole[len(prefix) - 1 + i, token] for i, token in enumerate(option)]
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_generation_in_a_batch_equals_greedy_decoding_alone(tiny_model: TorchModel) -> None:
    prompts = [tiny_model.encode(text) for text in ("a", "some longer prompt", "mid one")]
    found = tiny_model.generate(prompts, max_new_tokens=6)
    for prompt, produced in zip(prompts, found):
        expected, ids = [], list(prompt)
        for _ in range(6):
            token = int(plain_log_probs(tiny_model, ids)[-1].argmax())
            if token == 2:  # </s>
                break
            expected.append(token)
            ids.append(token)
        assert produced == expected


def test_generation_stops_at_the_stop_token(tiny_model: TorchModel) -> None:
    prompt = tiny_model.encode("x")
    first = tiny_model.generate([prompt], max_new_tokens=3)[0]
    tiny_model.module.generation_config.eos_token_id = [first[1]]
    cut = first[: first.index(first[1])]
    assert tiny_model.generate([prompt], max_new_tokens=3) == [cut]


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
    from ops.framework.pytorch import Calibrator
    from ops.quant.w8a8 import W8A8

    head, hidden = tiny_model.output_head(), tiny_model.hidden(np.array([[5, 6, 7]]))[0]
    expected = head(hidden)
    Calibrator(tiny_model.module, W8A8(ignore_last_linear=False), [{"input_ids": torch.tensor([[5, 6, 7]])}]).run()
    np.testing.assert_array_equal(head(hidden), expected)
