"""What a config alone tells of a model is what the model's own code makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from slimrun.ops.model.known import BIASES, known_outline, parameters_of, plain_config
from slimrun.ops.model.outline import measure, parameter_dtype
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.model.random import Random
from slimrun.ops.model.skeleton import skeleton

from ..conftest import ARCHITECTURE

LLAMA2 = ARCHITECTURE | {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
LLAMA2 |= {"num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False, "dtype": "float16"}
CONFIGS: dict[str, dict[str, Any]] = {
    **{kind: ARCHITECTURE | {"model_type": kind} for kind in BIASES},
    **{f"{kind}, biases": ARCHITECTURE | {"model_type": kind, "attention_bias": True} for kind in BIASES},
    "llama, biases in the MLP": ARCHITECTURE | {"mlp_bias": True},
    "llama, wide heads": ARCHITECTURE | {"head_dim": 32, "tie_word_embeddings": False},
    "qwen3, wide heads": ARCHITECTURE | {"model_type": "qwen3", "head_dim": 32},
    "two layers of llama2_7b": LLAMA2,
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_names_shapes_and_outline_are_those_of_the_skeleton(kind: str) -> None:
    config = AutoConfig.for_model(**CONFIGS[kind])
    state = skeleton(config).state_dict()
    assert parameters_of(config) == {name: tuple(tensor.shape) for name, tensor in state.items()}
    model = Random("tiny", architecture=CONFIGS[kind])
    told, measured = known_outline(config, parameter_dtype(model, config)), measure(model)
    assert told == measured
    assert told is not None
    assert list(told.linears) == list(measured.linears)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_plain_config_tells_the_same(kind: str) -> None:
    config = AutoConfig.for_model(**CONFIGS[kind])
    plain = plain_config(json.loads(config.to_json_string(use_diff=False)))
    assert plain is not None
    assert parameters_of(plain) == parameters_of(config)
    assert known_outline(plain, torch.float16) == known_outline(config, torch.float16)


@pytest.mark.parametrize("kind", BIASES)
def test_a_plain_config_leaves_no_default_to_guess(kind: str) -> None:
    """Without a key it tells what transformers' own class makes of what is left, or nothing."""
    whole = {**LLAMA2, "model_type": kind, "head_dim": 64, "attention_bias": False, "mlp_bias": False}
    for key in [key for key in whole if key != "model_type"]:
        told = {name: value for name, value in whole.items() if name != key}
        plain = plain_config(told)
        assert plain is None or parameters_of(plain) == parameters_of(AutoConfig.for_model(**told)), key
        assert plain is None or bool(plain.tie_word_embeddings) == AutoConfig.for_model(**told).tie_word_embeddings


@pytest.mark.parametrize("changes", [{"model_type": "gemma2"}, {"vocab_size": "many"}, {"dtype": 1}])
def test_a_config_that_is_not_plain_is_left_to_transformers(changes: dict[str, Any]) -> None:
    assert plain_config(LLAMA2 | changes) is None


@pytest.mark.parametrize(
    "changes", [{"model_type": "gemma2"}, {"num_key_value_heads": 3}, {"vocab_size": 259, "intermediate_size": 1}]
)
def test_others_are_left_to_their_own_code(changes: dict[str, Any]) -> None:
    assert known_outline(AutoConfig.for_model(**(ARCHITECTURE | changes)), None) is None


def test_a_folder_without_weights_needs_no_code_of_transformers(tmp_path: Path) -> None:
    AutoConfig.for_model(**LLAMA2).save_pretrained(tmp_path)
    outline = "Pretrained('tiny', sys.argv[1]).open(Path(sys.argv[1]) / 'cache').outline(['.safetensors'])"
    code = (
        "import json, sys; from pathlib import Path; from slimrun.ops.model.pretrained import Pretrained; "
        f"outline = {outline}; print(json.dumps([outline.parameters, len(outline.linears), bool(outline.missing), "
        "'transformers' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    parameters, linears, missing, imported = json.loads(done.stdout)
    measured = Pretrained("tiny", str(tmp_path)).config()
    assert (parameters, linears) == (sum(p.numel() for p in skeleton(measured).parameters()), 2 * 7 + 1)
    assert missing
    assert not imported
