"""Experts of a mixture are linears of their own: the same function, quantized, stored, read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from slimrun import load_bundle
from slimrun.ops.calibration.base import call, silent
from slimrun.ops.calibration.ranges import BARELY_REACHED, UNREACHED
from slimrun.ops.calibration.rdoq.fisher import measure
from slimrun.ops.framework.base import Device
from slimrun.ops.framework.pytorch import PyTorch, network
from slimrun.ops.memory import Room, in_files
from slimrun.ops.model.experts import unstack
from slimrun.ops.model.linears import expert_parameters
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.model.tokenizer import byte_tokenizer
from slimrun.runner.config import build, composed
from slimrun.runner.display import Stages
from slimrun.runner.result import Result

from .architectures import config_of, save

KINDS = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "granitemoe", "phimoe", "hunyuan_v1_moe")
EXPERTS = {  # of each layer
    "mixtral": (4, 4), "qwen2_moe": (4, 4), "qwen3_moe": (8, 8), "deepseek_v3": (8,), "gpt_oss": (4, 4),
}  # fmt: skip
HEAD_TOO = "quant.ignore_last_linear=false"  # a third of these tiny models
IDS = torch.arange(3, 37).reshape(2, 17)


def model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    made: torch.nn.Module = AutoModelForCausalLM.from_config(config_of(kind), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:  # gpt_oss leaves its biases as they come
                parameter.normal_(std=0.05)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_linears_compute_what_stacks_do(kind: str) -> None:
    mixture = model(kind)
    with torch.no_grad():
        stacked = mixture(input_ids=IDS).logits
        memory = {parameter.untyped_storage().data_ptr() for parameter in mixture.parameters()}
        unstack(mixture)
        torch.testing.assert_close(mixture(input_ids=IDS).logits, stacked, rtol=1e-5, atol=2e-6)
    assert expert_parameters(mixture) == {}
    if kind != "gpt_oss":  # whose stacks lie transposed
        assert {parameter.untyped_storage().data_ptr() for parameter in mixture.parameters()} == memory


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3", "hunyuan_v1_moe", "gpt_oss"])
def test_experts_stay_in_the_files_that_they_are_loaded_from(kind: str, tmp_path: Path) -> None:
    stacked = save(kind, tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    device = Device("cpu", "cpu", max_memory={"cpu": "0KiB"})
    loaded = PyTorch().load(Pretrained(kind, str(tmp_path)).open(tmp_path), device).module
    experts = [weight for name, weight in loaded.named_parameters() if ".experts." in name and weight.ndim == 2]
    assert len(experts) == 3 * sum(EXPERTS.get(kind, (4, 4)))
    assert all(in_files(experts))
    assert not hasattr(loaded.config, "quantization_config")
    with torch.no_grad():
        expected = stacked(input_ids=IDS).logits
        torch.testing.assert_close(loaded(input_ids=IDS).logits, expected, rtol=1e-5, atol=2e-6)


def test_a_mixture_larger_than_memory_gives_the_same_bundle(tmp_path: Path) -> None:
    results = [run("qwen3_moe", tmp_path, f"device.max_memory.cpu={bound}") for bound in ("1GiB", "64KiB")]
    same = ("artifact/logits_sha256", "size/compressed_bytes", "perplexity/quant", "fidelity/kl_mean")
    assert [results[0].metrics[key] for key in same] == [results[1].metrics[key] for key in same]


def run(kind: str, tmp_path: Path, *overrides: str) -> Result:
    folder = tmp_path / kind
    if not folder.exists():
        save(kind, folder)
        byte_tokenizer().save_pretrained(folder)
    settings = [
        "model=hf", f"model.path={folder}", "tracking=none", f"cache.dir={tmp_path / 'cache'}", "calibration.samples=2",
        "task=[perplexity]", "task.perplexity.windows=2", "task.perplexity.window=32",
    ]  # fmt: skip
    experiment = build(composed([*settings, *overrides]))
    with Stages() as stages:
        return experiment.run(tmp_path, stages, experiment.check())


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_every_expert_is_quantized_and_read_back(kind: str, tmp_path: Path) -> None:
    result = run(kind, tmp_path, HEAD_TOO)
    assert float(result.metrics["size/covered_share"]) > 0.95
    experts = [layer for layer in result.layers if ".experts." in str(layer["name"])]
    assert len(experts) == sum(3 * count for count in EXPERTS[kind])
    assert all(layer["quantized"] for layer in experts)
    restored = load_bundle(tmp_path / "artifact")
    assert restored.logits_checksum() == result.metrics["artifact/logits_sha256"]
    plain = run(kind, tmp_path, "quant=none")
    assert plain.metrics["perplexity/quant"] == plain.metrics["perplexity/float"]
    assert plain.metrics["fidelity/kl_mean"] == 0


def test_rdoq_measures_what_errors_in_an_expert_cost(tmp_path: Path) -> None:
    result = run("qwen3_moe", tmp_path, "quant=rdoq", HEAD_TOO, "quant.target_bits=5", "quant.samples=2")
    assert result.metrics["size/bits_per_weight"] == pytest.approx(5, rel=0.01)
    assert float(result.metrics["size/covered_share"]) > 0.95


def test_an_expert_that_sees_few_tokens_keeps_float_inputs(tmp_path: Path) -> None:
    result = run("mixtral", tmp_path, "calibration.samples=1", "calibration.length=32")
    inputs = {str(layer["name"]): layer["note"] for layer in result.layers if layer["note"]}
    assert inputs
    assert all(".experts." in name for name in inputs)
    assert set(inputs.values()) <= {f"inputs kept float, because {reason}" for reason in (UNREACHED, BARELY_REACHED)}
    assert any("calibration routed fewer than 32 tokens to it" in warning for warning in result.warnings)


def test_experts_that_a_glance_misses_are_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = model("mixtral").requires_grad_(False)
    monkeypatch.setattr(network, "GLANCE", 1)  # of one token, by two of the experts
    one = network.TorchNetwork(mixture)
    sample = {"input_ids": torch.arange(3, 253).unsqueeze(0)}  # by all of them
    names = list(one.linears())[:-1]
    statistics = measure(one, names, [sample], 1, Room(), call, silent)
    assert {f"{name}.rows" for name in names} <= statistics.by_part[0].keys()
