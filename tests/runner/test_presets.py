"""Presets compose, with every method, and say where what was not typed comes from."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from slimrun.evaluation.text import CJK, share
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.runner.config import build, composed

from .console import Console

METHODS = Path(__file__).parents[2] / "conf" / "quant"


def test_cfg_prints_the_composed_configuration(slimrun: Console) -> None:
    status, out, _ = slimrun("--cfg", "job", "quant.fraction=0.03")
    assert status == 0
    assert "fraction: 0.03" in out
    assert list(slimrun.folder.iterdir()) == []


def test_presets_compose() -> None:
    for name in ("chatglm2_6b", "llama2_7b", "llama_13b"):
        config = composed([f"experiment={name}", "model.path=./here"])
        assert (config.model.name, config.model.path) == (name, "./here")
        experiment = build(config)
        assert experiment.calibration.texts()[-1] == "中国最值得去的几个景点"
        assert bool(experiment.quant.ignore) == (name == "chatglm2_6b")


def test_a_chinese_model_is_asked_in_chinese_or_answers_in_it() -> None:
    tasks = build(composed(["experiment=chatglm2_6b", "model.path=./here"])).task
    asked = {name: share(CJK, task.texts()) for name, task in tasks.items()}
    assert asked.pop("translation_enzh") == 0
    assert asdict(tasks["translation_enzh"])["target"] == "zh"
    assert list(asked) == ["perplexity_zh", "parables", "translation_zhen"]
    assert min(asked.values()) > 0.8


def test_the_default_tasks_fit_the_tiny_model(tmp_path: Path) -> None:
    assert len(build(composed(["model=tiny_llama", f"cache.dir={tmp_path}"])).check().linears) == 15


@pytest.fixture(scope="module")
def alone() -> dict[str, Quantizer]:
    """Every method without a preset."""
    return {file.stem: build(composed([f"quant={file.stem}"])).quant for file in METHODS.glob("*.yaml")}


@pytest.mark.parametrize("preset", ["chatglm2_6b", "llama2_7b", "llama_13b"])
def test_a_preset_takes_every_method_as_it_is_without_it(preset: str, alone: dict[str, Quantizer]) -> None:
    for name, method in alone.items():
        given = build(composed([f"experiment={preset}", f"quant={name}", "model.path=./here"])).quant
        assert replace(given, ignore=[]) == method
    guide = build(composed([f"experiment={preset}", "model.path=./here"])).quant
    assert replace(guide, ignore=[]) == W8A8S(fraction=0.011, per_channel=True, observer="auto")


def test_what_was_not_typed_says_where_it_comes_from(slimrun: Console, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("a prompt")
    status, _, err = slimrun("experiment=llama2_7b", f"calibration.path={text}")
    assert status == 2
    assert "exclude each other" in err
    assert "(calibration.prompts comes from experiment=llama2_7b)" in err
    status, _, err = slimrun("experiment=llama2_7b", f"calibration.path={text}", "calibration.prompts=[a]")
    assert status == 2
    assert "comes from" not in err
    status, _, err = slimrun("experiment=llama2_7b", f"model.path={tmp_path / 'none'}")  # no key of the default model
    assert status == 2
    assert err == f"slimrun: model.path={tmp_path / 'none'}: no such folder; give a folder or a hub id (owner/name)\n"


def test_a_plan_loads_nothing_and_writes_nothing(slimrun: Console) -> None:
    status, out, _ = slimrun("plan=true", "quant.ignore=[*.down_proj]")
    assert status == 0
    assert "180 linears of 211 as W8A8S" in out
    assert list(slimrun.folder.iterdir()) == []
