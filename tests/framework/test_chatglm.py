"""ChatGLM2 without its remote code: logits of the original, and a folder as people have it from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimrun.ops.errors import Unavailable
from slimrun.ops.framework.pytorch import PyTorch
from slimrun.ops.model.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.model.tokenizer import load_tokenizer
from tests.conftest import CPU
from tests.framework import folders
from tests.framework.golden import chatglm as golden


@pytest.mark.parametrize("case", golden.CASES)
def test_logits_are_those_of_the_original_code(case: str) -> None:
    changes: dict[str, Any] = golden.CASES[case]
    module: Any = ChatGLMForConditionalGeneration(ChatGLMConfig(**{**golden.SHRUNKEN, **changes}))
    module = module.to(getattr(torch, changes.get("torch_dtype", "float32"))).eval()
    golden.fill(module)
    logits = golden.logits(case, module).float().numpy()
    expected = np.load(golden.GOLDEN)[case]
    if case == "padded":
        seen = np.array(golden.PADDED, dtype=bool)
        logits, expected = logits[seen], expected[seen]
    if case == "float16":  # processors round sums of halves each in their way: within twice that code's own error
        expected_error = np.abs(expected - np.load(golden.GOLDEN)["genuine"]).max()
        assert np.abs(logits - expected).max() <= 2 * expected_error
        return
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folders.chatglm2(tmp_path / "chatglm2-6b")


def test_steps_with_a_cache_give_what_one_pass_gives(folder: Path, tmp_path: Path) -> None:
    model = PyTorch().load(Pretrained("glm", str(folder), dtype="float32").open(tmp_path), CPU)
    prompts = [model.encode_prompt(text) for text in ("中国", "Everyone has the right to 自由")]
    for prompt, produced in zip(prompts, model.generate(prompts, max_new_tokens=5)):
        ids = list(prompt)
        for token in produced:
            with torch.no_grad():
                assert token == int(model.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
    assert model._steps.generates  # type: ignore[attr-defined]


def test_texts_begin_with_the_commands_and_come_back(folder: Path, tmp_path: Path) -> None:
    reader = Pretrained("glm", str(folder)).open(tmp_path).reader()
    assert reader is not None
    count = folders.PIECES
    text = "Everyone has the right to 自由\n\n🙂"
    assert reader.encode_prompt(text)[:2] == [count + 1, count + 3]  # [gMASK] sop
    assert reader.encode_prompt(text)[2:] == reader.encode(text)
    assert reader.decode(reader.encode_prompt(text)) == text
    padded = reader.tokenizer(["中国", text], padding=True)
    assert (padded["input_ids"][0][0], padded["attention_mask"][0][0]) == (0, 0)
    assert reader.stop_tokens() == {2}


def test_chatglm3_speaks_in_roles(tmp_path: Path) -> None:
    folder = folders.chatglm3(tmp_path / "chatglm3-6b")
    reader = Pretrained("glm3", str(folder)).open(tmp_path).reader()
    assert reader is not None
    mask, sop, user, assistant, observation = (folders.PIECES + place for place in (1, 3, 6, 7, 8))
    asked = reader.encode_prompt("中国")
    assert asked == [mask, sop, user, *reader.encode("\n 中国"), assistant]
    assert reader.tokenizer("中国")["input_ids"] == [mask, sop, *reader.encode("中国")]
    assert reader.stop_tokens() == {2, user, observation}
    assert reader.decode(asked) == "\n 中国"
    reader.tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (type(again), again.get_vocab()) == (type(reader.tokenizer), reader.tokenizer.get_vocab())
    assert again.chat_template == reader.tokenizer.chat_template
    assert len(PyTorch().check(Pretrained("glm3", str(folder)).open(tmp_path), CPU).linears) == 9


def test_glm4_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_ratio": 500, "num_hidden_layers": 2}))
    with pytest.raises(Unavailable, match=r"rope_ratio=500 is not built; .*GLM-4 .* such as THUDM/glm-4-9b-chat-hf"):
        PyTorch().check(Pretrained("glm", str(folder)).open(tmp_path), CPU)


@pytest.mark.parametrize(
    ("key", "value"),
    [("quantization_bit", 4), ("pre_seq_len", 128), ("rope_ratio", 50), ("fp32_residual_connection", True)],
)
def test_what_is_not_built_is_one_line(folder: Path, key: str, value: object, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(Unavailable, match=rf"{key}={value} is not built; allowed: ") as refused:
        PyTorch().check(Pretrained("glm", str(folder)).open(tmp_path), CPU)
    assert "\n" not in str(refused.value)
