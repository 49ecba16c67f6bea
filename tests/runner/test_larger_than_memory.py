"""A model for which memory has no room gives what it gives in memory, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import tiny
from tests.framework.folders import write_shards
from tests.runner.console import FAST, TINY, results, slimrun

BOUND = "device.max_memory.cpu=8KiB"
OTHER = ("time/", "memory/", "config_hash", "repro", "overrides")  # of the machine, or of what things are called


@pytest.mark.parametrize(
    "arguments",
    [
        ["quant=w8a8s"],
        ["quant=lowbit", "quant.do_smooth=true", "quant.ignore_last_linear=false"],
        ["quant=w8a8_dynamic", "compress=none"],
        ["quant=rdoq", "quant.target_bits=4"],
    ],
)
def test_everything_is_the_same(tmp_path: Path, arguments: list[str]) -> None:
    assert_same(tmp_path, "model=tiny_llama", *arguments)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_weights_are_read_from_their_files(tmp_path: Path, suffix: str, dtype: str) -> None:
    model, folder = tiny(tie_word_embeddings=False), tmp_path / "model"
    tensors = model.module.half().state_dict()
    if suffix == ".bin":
        write_shards(folder, tensors, 2)
        model.module.config.save_pretrained(folder)
    else:
        model.module.save_pretrained(folder, max_shard_size="60KB")
    model.tokenizer.save_pretrained(folder)
    assert_same(tmp_path, "model=hf", f"model.path={folder}", f"model.dtype={dtype}", "quant=w8a8s")


def assert_same(folder: Path, *arguments: str) -> None:
    outcomes = []
    for name, bound in (("resident", []), ("bounded", [BOUND])):
        (folder / name).mkdir()
        status, _, err = slimrun(folder / name, *FAST, *arguments, *bound, "tracking=none", "hydra.run.dir=run")
        assert status == 0, err
        numbers = {key: value for key, value in results(folder / name)[0].items() if not key.startswith(OTHER)}
        artifact = folder / name / "run" / "artifact"
        outcomes.append((numbers, {file.name: file.read_bytes() for file in artifact.iterdir()}))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(("skip", "said"), [("true", "left out"), ("false", "read the model from disk")])
def test_tasks_that_generate_are_named_before_the_model_loads(tmp_path: Path, skip: str, said: str) -> None:
    arguments = ["task=[perplexity,summarization]", "task.summarization.limit=2", "task.summarization.max_new_tokens=2"]
    status, _, err = slimrun(
        tmp_path, *TINY, *arguments, BOUND, f"skip_generation={skip}", "tracking=none", "hydra.run.dir=run"
    )
    assert status == 0, err
    first = next(line for line in err.splitlines() if "summarization" in line)
    assert f"task: summarization {said}" in first
    assert ("summarization/rougeL_quant" in results(tmp_path)[0]) == (skip == "false")


def test_nothing_but_generation_cannot_be_left_out(tmp_path: Path) -> None:
    status, _, err = slimrun(tmp_path, "model=tiny_llama", BOUND, "task=[translation]", "skip_generation=true")
    assert status == 2
    assert err == "slimrun: skip_generation=true leaves no task; add one that scores, e.g. task=[perplexity]\n"
