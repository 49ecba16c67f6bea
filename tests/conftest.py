"""Fixtures: a random LLaMA that runs in milliseconds, and the real SmolLM2 behind the marker `real`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve a busy 2-core machine
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import signal
from pathlib import Path

import hypothesis
import pytest
import torch

from slimrun.ops.errors import Unavailable
from slimrun.ops.framework import mindspore
from slimrun.ops.framework.base import Device, Framework
from slimrun.ops.framework.pytorch import PyTorch, TorchModel
from slimrun.ops.model import embedded
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.model.random import Random

# a shell's background job ignores Ctrl-C, and so would every program that the tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("slimrun", deadline=None)  # how long an example takes says nothing here
hypothesis.settings.load_profile("slimrun")

CPU = Device(name="cpu", type="cpu")
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 259,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs.", "今天天气很好。"]


def cache_folder() -> Path:
    return Path(os.environ.get("SLIMRUN_CACHE", "~/.cache/slimrun")).expanduser()


def described(dtype: str = "float32", **changes: object) -> Random:
    return Random("tiny", dtype=dtype, architecture=ARCHITECTURE | changes)


def tiny(dtype: str = "float32", **changes: object) -> TorchModel:
    return PyTorch().load(described(dtype, **changes).open(Path("unused")), CPU)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker a core for a whole suite; one file starts faster without any."""
    whole = all(Path(argument).is_dir() for argument in config.args)
    return min(os.cpu_count() or 1, 8) if whole else 0


@pytest.fixture(params=["pytorch", pytest.param("mindspore", marks=pytest.mark.mindspore)])
def framework(request: pytest.FixtureRequest) -> Framework:
    """Each framework; MindSpore where it can be imported."""
    if request.param == "pytorch":
        return PyTorch()
    request.getfixturevalue("with_mindspore")
    return mindspore.MindSpore()


@pytest.fixture
def with_mindspore() -> None:
    """Skips a test where MindSpore cannot be imported."""
    try:
        mindspore.require()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def tiny_model() -> TorchModel:
    return tiny()


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A tiny random model as a user's folder: config.json, safetensors, tokenizer."""
    folder = tmp_path / "tiny"
    model = tiny()
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> TorchModel:
    """The real model, fetched once into the cache; the session shares it, so tests must not change it."""
    torch.set_num_threads(2)
    path = embedded.fetched(cache_folder())
    return PyTorch().load(Pretrained("smollm2", str(path)).open(cache_folder()), CPU)
