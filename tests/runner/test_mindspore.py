"""The command with framework=mindspore: the same files and numbers, its own checkpoint, the user's own network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from slimrun.ops import load_bundle
from slimrun.ops.errors import Unavailable
from slimrun.ops.framework import mindspore

from ..conftest import tiny
from .console import FAST, results, slimrun
from .test_larger_than_memory import assert_same

pytestmark = pytest.mark.mindspore
try:
    mindspore.require()
except Unavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

from slimrun.ops.weights import ckpt

RUN = [*FAST, "framework=mindspore", "tracking=none", "hydra.run.dir=run"]
HUB = ["model=hf", "model.path=owner/name"]
OWN = ["model=own", "model.loader=tests.msmodelslim.tiny_llama.load_model_and_tokenizer"]


def test_a_run_leaves_a_checkpoint_with_coded_weights_that_computes_the_same(tmp_path: Path) -> None:
    code, _, err = slimrun(tmp_path, *RUN, "compress=nz", "framework.weights=ckpt")
    assert code == 0, err
    assert "WARNING" not in err
    result = results(tmp_path)[0]
    assert (result["status"], result["compress/verified"]) == ("ok", 1)
    weights = tmp_path / "run" / "artifact" / "quant_model_weight_w8a8sc.ckpt"
    stored = ckpt.read(weights)
    own = {key.rpartition(".")[2] for key in stored if key.startswith("model.layers.0.self_attn.q_proj.")}
    assert own == {"weight", "index", "info", "input_scale", "input_offset", "quant_bias", "deq_scale"}
    model = load_bundle(tmp_path / "run" / "artifact", framework="mindspore")
    assert model.logits_checksum() == result["artifact/logits_sha256"]


def test_numbers_are_those_of_pytorch(tmp_path: Path) -> None:
    by_framework = {}
    for framework in ("pytorch", "mindspore"):
        run = [*FAST, "tracking=none", f"framework={framework}", f"hydra.run.dir={framework}"]
        code, _, err = slimrun(tmp_path, *run)
        assert code == 0, err
        by_framework[framework] = json.loads((tmp_path / framework / "results.json").read_text())
    first, second = by_framework.values()
    assert first["size/bits_per_weight"] == second["size/bits_per_weight"]
    assert second["perplexity/float"] == pytest.approx(first["perplexity/float"], rel=1e-5)
    assert second["perplexity/quant"] == pytest.approx(first["perplexity/quant"], rel=0.005)
    assert first["config_hash"] != second["config_hash"]


def test_a_model_larger_than_memory_gives_the_same(tmp_path: Path) -> None:
    model, folder = tiny(tie_word_embeddings=False), tmp_path / "model"
    model.module.half().save_pretrained(folder, max_shard_size="60KB")
    model.tokenizer.save_pretrained(folder)
    run = ["framework=mindspore", "model=hf", f"model.path={folder}", "model.dtype=float32"]
    assert_same(tmp_path, *run, "quant=lowbit", "quant.do_smooth=true", "quant.embeddings=int8")


def test_the_users_own_network(tmp_path: Path) -> None:
    tasks = ["task=[perplexity,translation]", "task.translation.limit=2", "task.translation.max_new_tokens=4"]
    code, _, err = slimrun(tmp_path, *RUN, *OWN, *tasks)
    assert code == 0, err
    result = results(tmp_path)[0]
    assert result["compress/verified"] == 1
    assert result["perplexity/quant"] == pytest.approx(result["perplexity/float"], rel=0.5)
    with pytest.raises(ValueError, match="give trust_remote_code=True if you trust it"):
        load_bundle(tmp_path / "run" / "artifact", framework="mindspore")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["framework.weights=npz"], "framework.weights=npz is not known; allowed: safetensors, ckpt"),
        (["device=cuda"], "device=cuda: framework=mindspore runs on cpu, npu"),
        (["device=cpu_disk", "device.type=npu"], "device.max_memory: framework=mindspore holds the model on the card"),
        (["device=npu"], "device=npu: MindSpore finds no Ascend here; install CANN"),
        (
            ["model=hf", "model.path=x/y", "model.trust_remote_code=true"],
            "model.trust_remote_code=true is for framework=pytorch",
        ),
        (["model.dtype=bfloat16"], "model.dtype=bfloat16: MindSpore has no bfloat16 products on the CPU"),
        (["quant=rdoq"], "quant._target_=RDOQ needs gradients; allowed: framework=pytorch"),
        (["model=own", "model.loader=none.such"], "model.loader=none.such cannot be imported"),
        (
            ["model=own", "model.loader=os.getcwd"],
            "model.loader=os.getcwd gives str; expected (mindspore.nn.Cell, tokenizer)",
        ),
        ([*OWN, "quant.ignore=[lm_haed]"], "quant.ignore"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, overrides: list[str], expected: str) -> None:
    code, _, err = slimrun(tmp_path, *RUN, *overrides)
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    assert expected in err
    assert not os.path.exists(tmp_path / "run")
