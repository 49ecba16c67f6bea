"""Models built without memory: the buffers are the directly built model's, and no other thread notices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from slimrun.ops import bundle, load_bundle
from slimrun.ops.compress.none import NoCompression
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.ops.model.skeleton import shapes_of, skeleton
from slimrun.ops.model.tokenizer import byte_tokenizer
from tests.conftest import ARCHITECTURE

ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 64}
NEW_WAY = {
    name: ARCHITECTURE[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "vocab_size": 259}
KINDS: dict[str, dict[str, Any]] = {  # how positions are told
    "rotary": ARCHITECTURE,
    "rotary, half precision": ARCHITECTURE | {"dtype": "bfloat16"},
    "rotary, linear": ARCHITECTURE | {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}},
    "rotary, dynamic": ARCHITECTURE | {"rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 2.0}},
    "rotary, yarn": ARCHITECTURE | {"rope_parameters": ROPE | {"rope_type": "yarn", "factor": 8.0}},
    "rotary, llama3": ARCHITECTURE
    | {
        "rope_parameters": ROPE
        | {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    },
    "rotary, longrope": ARCHITECTURE
    | {"model_type": "phi3", "original_max_position_embeddings": 64}
    | {"rope_parameters": ROPE | {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}},
    "rotary, by kind of layer": ARCHITECTURE | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 64},
    "rotary, in part": NEW_WAY | {"model_type": "gpt_neox", "intermediate_size": 128},
    "rotary, by head": ARCHITECTURE | {"model_type": "qwen3", "head_dim": 32},
    "rotary, interleaved": GPT | {"model_type": "gptj", "rotary_dim": 8},
    "rotary, codegen": GPT | {"model_type": "codegen", "rotary_dim": 8},
    "learned": GPT | {"model_type": "gpt2"},
    "learned, with an offset": NEW_WAY | {"model_type": "opt", "ffn_dim": 128, "word_embed_proj_dim": 64},
    "sinusoidal": {"model_type": "xglm", "d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4}
    | {"vocab_size": 259, "max_position_embeddings": 512},
    "ALiBi": {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 259},
    "ALiBi, mpt": {"model_type": "mpt", "d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 259},
    "a state": {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 259},
}


def config_of(kind: str) -> Any:
    return AutoConfig.for_model(**KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_are_those_of_the_model_and_parameters_take_no_memory(kind: str) -> None:
    direct = AutoModelForCausalLM.from_config(config_of(kind))
    empty = skeleton(config_of(kind))
    expected = dict(direct.named_buffers())
    buffers = dict(empty.named_buffers())
    assert buffers.keys() == expected.keys()
    for name, buffer in expected.items():
        assert buffers[name].dtype == buffer.dtype
        assert torch.equal(buffers[name], buffer), name
    shapes = {name: parameter.shape for name, parameter in direct.named_parameters()}
    assert {name: parameter.shape for name, parameter in empty.named_parameters()} == shapes
    assert all(parameter.is_meta for parameter in empty.parameters())
    stored = shapes_of(config_of(kind)).stored
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: tensor.shape for name, tensor in direct.state_dict().items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_of_the_model_computes_what_the_model_does(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TorchModel(AutoModelForCausalLM.from_config(config_of(kind)), byte_tokenizer(), "tiny", "tiny")
    bundle.write(tmp_path / "artifact", model.tensors(), {}, "FLOAT", NoCompression(), model.save_description)
    assert load_bundle(tmp_path / "artifact").logits_checksum() == model.logits_checksum()


def test_other_threads_go_on_making_modules_with_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, done = threading.Event(), threading.Event()
    build = LlamaMLP.__init__

    def slowly(*arguments: Any) -> None:
        inside.set()
        assert done.wait(60)
        build(*arguments)

    monkeypatch.setattr(LlamaMLP, "__init__", slowly)
    devices: list[torch.device] = []
    building = threading.Thread(
        target=lambda: devices.extend(parameter.device for parameter in skeleton(config_of("rotary")).parameters())
    )
    building.start()
    assert inside.wait(60)
    meanwhile = nn.Linear(2, 2).weight.device
    done.set()
    building.join()
    assert meanwhile.type == "cpu"
    assert {device.type for device in devices} == {"meta"}


def in_threads(number: int, work: Callable[[], object]) -> list[object]:
    outcomes: list[object] = []

    def run() -> None:
        try:
            outcomes.append(work())
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_bundles_load_on_several_threads_and_leave_nothing_behind(tmp_path: Path) -> None:
    folders = []
    for kind in ("rotary", "rotary, half precision"):
        model = TorchModel(AutoModelForCausalLM.from_config(config_of(kind)), byte_tokenizer(), "tiny", "tiny")
        folders.append((tmp_path / kind, model.logits_checksum()))
        bundle.write(tmp_path / kind, model.tensors(), {}, "FLOAT", NoCompression(), model.save_description)

    def load() -> list[str]:
        return [load_bundle(folder).logits_checksum() for folder, _ in folders]

    assert in_threads(4, load) == [[expected for _, expected in folders]] * 4
    assert nn.Linear(2, 2).weight.device.type == "cpu"
    assert torch.get_default_dtype() == torch.float32
