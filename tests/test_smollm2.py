"""The real SmolLM2-135M: sizes, loss and the way back through the bundle, on few tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from slimrun.evaluation.base import Reference
from slimrun.evaluation.source.file import read_prompts
from slimrun.evaluation.source.pinned import pinned
from slimrun.evaluation.task.perplexity import Perplexity
from slimrun.ops import bundle
from slimrun.ops.calibration.base import Layer
from slimrun.ops.compress import entropy_bits
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native
from slimrun.ops.framework.pytorch import PyTorch, TorchModel
from slimrun.ops.model import embedded
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.quant.w8a8s import W8A8S

from .conftest import CPU, cache_folder
from .quant.test_methods import co_sparse

pytestmark = pytest.mark.real
TASK = Perplexity(windows=3, window=256)


def silent(done: int, total: int) -> None:
    """No progress shown."""


@pytest.fixture(scope="module")
def quantized(smollm2: TorchModel) -> tuple[TorchModel, list[Layer]]:
    path = str(embedded.fetched(cache_folder()))
    model = PyTorch().load(Pretrained("smollm2", path).open(cache_folder()), CPU)
    texts = read_prompts(pinned("wikipedia_calibration"))[:3]
    layers = PyTorch().calibrator(model, W8A8S(), texts, 256).run()
    return model, layers


def test_integers_are_those_of_the_formula(smollm2: TorchModel, quantized: tuple[TorchModel, list[Layer]]) -> None:
    for name in ("model.layers.10.mlp.gate_proj", "model.layers.0.self_attn.q_proj", "model.layers.29.mlp.down_proj"):
        weight = smollm2.module.get_submodule(name).weight.detach().numpy()
        integers, _ = co_sparse(weight, 0.011, per_channel=True)
        values = quantized[0].module.get_submodule(name).weight.numpy()
        assert (values == integers).mean() > 0.99999


def test_coded_size_is_near_the_entropy(quantized: tuple[TorchModel, list[Layer]]) -> None:
    model, layers = quantized
    assert sum(layer.quantized for layer in layers) == 210
    weights = {name: model.module.get_submodule(name).weight.numpy() for name in model.quantized()}
    coded = Compressor(Native()).run(weights)
    count = sum(weight.size for weight in weights.values())
    assert count == 106_168_320
    size = sum(part.nbytes for parts in coded.values() for part in parts.values())
    scales = 4 * sum(weight.shape[0] for weight in weights.values())
    entropy = sum(entropy_bits(weight) * weight.size for weight in weights.values()) / 8
    assert size < 1.01 * entropy
    assert 8 * (size + scales) / count <= 3.70


def test_quantization_costs_and_the_reloaded_bundle_is_the_same_model(
    smollm2: TorchModel, quantized: tuple[TorchModel, list[Layer]], tmp_path: Path
) -> None:
    model, _ = quantized
    tensors = model.tensors()
    coded = Compressor(Native()).run({name: tensors[f"{name}.weight"].numpy() for name in model.quantized()})
    bundle.write(tmp_path / "artifact", tensors, coded, "W8A8S", Native(), model.save_description)
    bundle.verify(tmp_path / "artifact", tensors)
    reloaded = PyTorch().restore(tmp_path / "artifact", CPU)
    assert reloaded.logits_checksum() == model.logits_checksum()

    float_outputs = TASK.evaluate(smollm2, None, silent)
    outputs = TASK.evaluate(reloaded, Reference(float_outputs, smollm2.output_head()), silent)
    report = TASK.compare("perplexity", float_outputs, outputs).metrics
    assert np.isfinite(float(report["perplexity/quant"]))
    assert float(report["perplexity/float"]) < float(report["perplexity/quant"]) < 5 * float(report["perplexity/float"])
    assert 0.1 < float(report["fidelity/kl_mean"]) < 3
    assert 0.3 < float(report["fidelity/top1_agreement"]) < 0.9


def test_a_question_it_can_answer(smollm2: TorchModel) -> None:
    answer = smollm2.generate([smollm2.encode_prompt("What is the capital of France?")], max_new_tokens=16)
    assert "Paris" in smollm2.decode(answer[0])
    assert torch.get_num_threads() <= 2
