"""Folders as people have them, under the presets of the guide: from the files to a bundle that reads as they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slimrun.ops import load_bundle
from slimrun.runner.config import build, composed
from slimrun.runner.display import Stages
from tests.framework import folders

METHODS = Path(__file__).parents[2] / "conf" / "quant"
TEXT = "Everyone has the right to 自由"


@pytest.mark.parametrize(
    ("preset", "write", "quantized"),
    [
        (["chatglm2_6b"], folders.chatglm2, 5),
        (["chatglm2_6b", "quant=rdoq", "model.dtype=float32"], folders.chatglm2, 5),
        (["llama_13b"], folders.llama, 14),
        (["llama2_7b"], folders.llama, 14),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_preset_runs_on_it(preset: list[str], write: Callable[[Path], Path], quantized: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    overrides = [
        f"experiment={preset[0]}", *preset[1:], f"model.path={folder}", "task=[perplexity,translation]",
        "task.perplexity.windows=2", "task.perplexity.window=64",
        "task.translation.limit=2", "task.translation.max_new_tokens=4", "tracking=none",
        f"cache.dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    experiment = build(composed(overrides))
    outline = experiment.check()
    with Stages() as stages:
        result = experiment.run(tmp_path, stages, outline)
    assert sum(bool(layer["quantized"]) for layer in result.layers) == quantized
    restored = load_bundle(tmp_path / "artifact")
    assert restored.logits_checksum() == result.metrics["artifact/logits_sha256"]
    reader = experiment.model.reader()
    assert reader is not None
    assert restored.encode_prompt(TEXT) == reader.encode_prompt(TEXT)


@pytest.fixture(scope="module")
def chatglm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.chatglm2(tmp_path_factory.mktemp("chatglm2") / "model")


@pytest.mark.parametrize("method", sorted(file.stem for file in METHODS.glob("*.yaml")))
def test_every_method_is_planned_on_it(method: str, chatglm2: Path) -> None:
    cache = chatglm2.parent / "cache"  # the tasks, which fit or do not whatever the method, are looked at once
    experiment = build(
        composed(["experiment=chatglm2_6b", f"quant={method}", f"model.path={chatglm2}", f"cache.dir={cache}"])
    )
    assert len(experiment.covered(experiment.check())) == 5
