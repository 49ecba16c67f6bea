"""A model that brings its own code, as ChatGLM2 does: from the user's folder to a bundle that runs without it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimrun.ops import bundle, load_bundle
from slimrun.ops.compress.none import NoCompression
from slimrun.ops.errors import Unavailable
from slimrun.ops.framework.pytorch import PyTorch, TorchModel
from slimrun.ops.framework.pytorch.language_model import check_output_head
from slimrun.ops.model.own import Own
from slimrun.ops.model.pretrained import Pretrained
from slimrun.runner.config import build, composed
from slimrun.runner.display import Stages
from tests.conftest import CPU

from .chatglm import AUTO_MAP, chatglm, write_folder


@pytest.fixture
def glm(tmp_path: Path) -> TorchModel:
    model = Pretrained("glm", str(write_folder(tmp_path / "glm")), trust_remote_code=True)
    return PyTorch().load(model.open(tmp_path), CPU)


def plain_log_probs(model: TorchModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model.module(input_ids=torch.tensor([ids])).logits[0], dim=-1)


def test_the_whole_preset_runs_and_its_bundle_needs_no_other_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "glm")
    overrides = [
        "experiment=chatglm2_6b", f"model.path={folder}", "model.trust_remote_code=true", "model.dtype=float32",
        "task=[perplexity]", "task.perplexity.windows=2", "task.perplexity.window=64", "tracking=none",
        f"cache.dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    experiment = build(composed(overrides))
    assert len(experiment.check().linears) == 9
    with Stages() as stages:
        result = experiment.run(tmp_path, stages)
    assert sum(bool(layer["quantized"]) for layer in result.layers) == 5
    artifact = tmp_path / "artifact"
    assert {path.name for path in artifact.glob("*.py")} == {"configuration_chatglm.py", "modeling_chatglm.py"}
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="brings its own code: give trust_remote_code=True if you trust it"):
        load_bundle(artifact)
    restored = load_bundle(artifact, trust_remote_code=True)
    assert restored.logits_checksum() == result.metrics["artifact/logits_sha256"]


def test_code_from_a_hub_is_named_as_lying_in_the_bundle(glm: TorchModel, tmp_path: Path) -> None:
    glm.module.config.auto_map = {kind: f"owner/name--{target}" for kind, target in AUTO_MAP.items()}
    expected = glm.logits_checksum()
    bundle.write(tmp_path / "artifact", glm.tensors(), {}, "FLOAT", NoCompression(), glm.save_description)
    assert json.loads((tmp_path / "artifact" / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert load_bundle(tmp_path / "artifact", trust_remote_code=True).logits_checksum() == expected


def test_the_attention_mask_as_second_argument_runs(glm: TorchModel) -> None:
    ids = torch.tensor([[5, 6, 7]])
    assert glm.module(ids, torch.ones_like(ids)).logits.shape == (1, 3, 264)


def test_scoring_and_generation_with_the_own_cache(glm: TorchModel) -> None:
    assert glm.context == 1024
    prompts = [glm.encode(text) for text in ("a", "some longer prompt")]
    for prompt, produced in zip(prompts, glm.generate(prompts, max_new_tokens=5)):
        ids = list(prompt)
        for token in produced:
            assert token == int(plain_log_probs(glm, ids)[-1].argmax())
            ids.append(token)
    prefix, options = glm.encode("The answer is"), [glm.encode(" a"), glm.encode(" longer")]
    for option, scores in zip(options, glm.continuations(prefix, options)):
        whole = plain_log_probs(glm, prefix + option)
        expected = [float(whole[len(prefix) - 1 + i, token]) for i, token in enumerate(option)]
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_a_base_model_that_cannot_be_told_apart_is_refused(glm: TorchModel) -> None:
    forward = glm.module.transformer.forward

    def tokens_first(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.last_hidden_state = out.last_hidden_state.transpose(0, 1)
        return out

    glm.module.transformer.forward = tokens_first
    with pytest.raises(ValueError, match=r"ChatGLM.* gives last_hidden_state \[batch, tokens, channels\]"):
        check_output_head(glm)
    whole = chatglm()
    whole.base_model_prefix = ""
    with pytest.raises(ValueError, match="apart from its output layer"):
        check_output_head(TorchModel(whole, glm.tokenizer, "whole", ""))


@pytest.mark.parametrize("file", ["configuration_chatglm.py", "modeling_chatglm.py"])
def test_code_that_this_transformers_breaks_is_one_line(tmp_path: Path, file: str) -> None:
    folder = write_folder(tmp_path / "old")
    code = (folder / file).read_text()
    (folder / file).write_text(
        code.replace("super().__init__(", "self.lost = self.gone_from_transformers\n        super().__init__(")
    )
    with pytest.raises(
        Unavailable, match=rf"gone_from_transformers' \({file}, line \d+\): .* get a newer rev"
    ) as refused:
        PyTorch().check(Pretrained("old", str(folder), trust_remote_code=True).open(tmp_path), CPU)
    assert "\n" not in str(refused.value)


def test_code_of_a_tokenizer_that_this_transformers_breaks_is_one_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "old")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenization_own.py").write_text(
        "from transformers import PreTrainedTokenizer\n\nclass Own(PreTrainedTokenizer):\n"
        "    def __init__(self, **others):\n        self.lost = self.gone_from_transformers\n"
    )
    told = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    model = Pretrained("old", str(folder), trust_remote_code=True).open(tmp_path)
    with pytest.raises(
        Unavailable,
        match=r"its tokenizer cannot be read \(.*gone_from_tr.*\) \(tokenization_own.py, line 5\): .* newer",
    ) as refused:
        model.tokenizer()
    assert "\n" not in str(refused.value)


def test_a_loader_is_found_where_slimrun_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loader_of_mine.py").write_text("def load():\n    return 'network', 'tokenizer'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [item for item in sys.path if item not in ("", str(tmp_path))])
    assert Own("mine", "loader_of_mine.load").own() == ("network", "tokenizer")


def test_a_loader_is_for_mindspore() -> None:
    with pytest.raises(Unavailable, match=r"model.loader=mine.load is for framework=mindspore"):
        PyTorch().check(Own("mine", "mine.load").open(Path("unused")), CPU)
