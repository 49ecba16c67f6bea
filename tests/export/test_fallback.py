"""A third of a model's linears keep float inputs: no group is split, and every target says what it rewrote."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from slimrun.ops import bundle
from slimrun.ops.export import targets
from slimrun.ops.quant.rdoq import RDOQ, Fallback

from ..conftest import tiny
from .bundles import write
from .test_gguf import WORDS

GROUPS = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
REWRITTEN = {"vllm-ascend-310p": "W8A16 -> FLOAT", "mindie": "W8A16 -> FLOAT"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fallback") / "artifact"
    model = tiny("float16", num_hidden_layers=4)
    model.tokenizer.backend_tokenizer.pre_tokenizer = WORDS
    write(folder, model, RDOQ(target_bits=3.5, fallback=Fallback(max_share=0.3)))
    return folder


def test_no_group_is_split(artifact: Path) -> None:
    types = bundle.read(artifact).types
    assert Counter(types.values()).keys() == {"W8A8S", "W8A16"}
    for layer in range(4):
        for group in GROUPS:
            assert len({types[f"model.layers.{layer}.{member}"] for member in group}) == 1


@pytest.mark.parametrize("name", targets())
def test_every_target_takes_it(artifact: Path, tmp_path: Path, name: str) -> None:
    if name == "ckpt" and importlib.util.find_spec("mindspore") is None:
        pytest.skip("MindSpore writes it")
    exported = targets()[name]().run(artifact, tmp_path / "export")
    formats = {change.what for change in exported.changes if change.what.startswith("W8A")}
    assert formats == ({REWRITTEN[name]} if name in REWRITTEN else set())
    assert exported.checks
