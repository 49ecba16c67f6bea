"""A third of a model's linears have no static grid: no group is split, and every target says what it rewrote."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from slimrun.ops import bundle
from slimrun.ops.export import checks, targets
from slimrun.ops.quant.rdoq import RDOQ, Fallback

from ..conftest import tiny
from .bundles import write
from .test_gguf import WORDS

GROUPS = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
LADDERS = {"float": "W8A16", "dynamic,float": "W8A8_DYNAMIC"}  # order to try -> the format that the worst then have
NOT_THERE = {"vllm-ascend-310p": {"W8A16"}, "mindie": {"W8A16", "W8A8_DYNAMIC"}}  # beside static grids


@pytest.fixture(scope="module", params=LADDERS)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fallback") / "artifact"
    model = tiny("float16", num_hidden_layers=4)
    model.tokenizer.backend_tokenizer.pre_tokenizer = WORDS
    fallback = Fallback(max_share=0.3, inputs=request.param.split(","))
    write(folder, model, RDOQ(target_bits=3.5, fallback=fallback))
    assert LADDERS[request.param] in bundle.read(folder).types.values()
    return folder


def test_no_group_is_split(artifact: Path) -> None:
    types = bundle.read(artifact).types
    assert 20 <= Counter(types.values())["W8A8S"] < 28  # the worst eight at most have another format
    for layer in range(4):
        for group in GROUPS:
            assert len({types[f"model.layers.{layer}.{member}"] for member in group}) == 1


@pytest.mark.parametrize("name", targets())
def test_every_target_takes_it(artifact: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "TRIED", 16)  # not all rows of these small linears
    if name == "ckpt" and importlib.util.find_spec("mindspore") is None:
        pytest.skip("MindSpore writes it")
    exported = targets()[name]().run(artifact, tmp_path / "export")
    formats = {change.what for change in exported.changes if change.what.startswith("W8A")}
    rewritten = set(bundle.read(artifact).types.values()) & NOT_THERE.get(name, set())
    assert formats == {f"{kind} -> FLOAT" for kind in rewritten}
    assert exported.checks
