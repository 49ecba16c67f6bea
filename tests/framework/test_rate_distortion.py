"""Rate-distortion optimized quantization of whole models: what it measures, folds, meets and leaves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ops import bundle, load_bundle
from ops.compress.compressor import Compressor
from ops.compress.native import Native
from ops.framework.pytorch import PyTorch, TorchModel
from ops.framework.pytorch.fisher import FisherStatistics
from ops.framework.pytorch.folding import find_folds, fold
from ops.framework.pytorch.network import TorchNetwork, linear_names
from ops.framework.pytorch.rate_distortion import RateDistortionCalibrator
from ops.quant.rdoq import RDOQ

from ..conftest import TEXTS, tiny
from .chatglm import VOCABULARY
from .chatglm import chatglm as make_chatglm

CHANGES: dict[str, Any] = {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
QUANTIZER = RDOQ(target_bits=5.0, max_share=0.1)


def calibrator(model: TorchModel, quantizer: RDOQ = QUANTIZER) -> RateDistortionCalibrator:
    found = PyTorch().calibrator(model, quantizer, TEXTS, 64)
    assert isinstance(found, RateDistortionCalibrator)
    return found


def scales(folds: list[Any]) -> list[tuple[Any, Tensor]]:
    """Each fold with a scale that its producer can take."""
    generator = torch.Generator().manual_seed(0)
    return [(one, one.per_producer(torch.rand(one.of.numel(), generator=generator) * 3 + 0.2)) for one in folds]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_folds_of_a_llama_leave_its_outputs(kv_heads: int) -> None:
    model = tiny(**CHANGES, num_key_value_heads=kv_heads).module
    ids = torch.arange(3, 60).unsqueeze(0)
    network, run = TorchNetwork(model, model.base_model), partial(model.base_model, input_ids=ids)
    folds = find_folds(network, [run])
    assert len(folds) == 2 * 4  # of each layer: two norms, value -> output, up -> down
    before = model(input_ids=ids).logits.detach()
    weight = model.model.layers[1].self_attn.o_proj.weight.clone()
    fold(network, scales(folds), run)
    torch.testing.assert_close(model(input_ids=ids).logits.detach(), before, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.model.layers[1].self_attn.o_proj.weight, weight)


def test_folds_of_chatglm_leave_its_outputs() -> None:
    model = make_chatglm()
    ids = torch.randint(0, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(0))
    network, run = TorchNetwork(model), partial(model, ids)
    folds = [one for one in find_folds(network, [run]) if "output_layer" not in one.readers[0]]
    assert {one.producer.rpartition(".")[2] for one in folds} >= {"query_key_value", "dense_h_to_4h", "input_layernorm"}
    before = model(ids).logits.detach()
    fold(network, scales(folds), run)
    torch.testing.assert_close(model(ids).logits.detach(), before, rtol=1e-4, atol=1e-5)


def test_a_fold_that_changes_the_model_is_refused() -> None:
    model = tiny().module
    run = partial(model.base_model, input_ids=torch.arange(3, 60).unsqueeze(0))
    network = TorchNetwork(model, model.base_model)
    one, scale = scales(find_folds(network, [run]))[0]
    wrong = type(one)(one.readers[:1], one.producer, one.of)
    with pytest.raises(ValueError, match="folding scales changes what this model computes"):
        fold(network, [(wrong, scale)], run)


def test_statistics_are_those_of_autograd() -> None:
    model = tiny(**CHANGES)
    names = list(linear_names(model.module))[:-1]
    ids = torch.arange(3, 40).unsqueeze(0)
    statistics = FisherStatistics(model.module, names)
    statistics.add(lambda: model.module(input_ids=ids).logits, torch.Generator().manual_seed(0))
    found = statistics.arrays()
    # by hand, for one linear
    name = "model.layers.1.mlp.up_proj"
    kept: dict[str, Tensor] = {}
    linear = model.module.get_submodule(name)
    handle = linear.register_forward_hook(lambda _, x, out: kept.update(x=x[0], out=out) or out.retain_grad())
    logits = model.module(input_ids=ids).logits[0]
    handle.remove()
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(logits, labels.squeeze(1), reduction="sum").backward()
    assert kept["out"].grad is not None
    x, gradient = kept["x"].detach()[0], kept["out"].grad[0]
    length = gradient.square().sum(dim=1)
    torch.testing.assert_close(torch.from_numpy(found[f"{name}.rows"]), length.pow(-0.5) @ gradient.square())
    gate = model.module.get_submodule("model.layers.1.mlp.gate_proj")
    assert gate is not None
    assert names[int(found[f"{name}.first"])] == "model.layers.1.mlp.gate_proj"
    assert f"{name}.moment" not in found
    moment = found["model.layers.1.mlp.gate_proj.moment"]
    assert moment.shape == (64, 64)
    np.testing.assert_allclose(moment, moment.T, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found["model.layers.1.mlp.gate_proj.reach"], x.abs().amax(dim=0), rtol=1e-6)
    assert all(not parameter.grad_fn for parameter in model.module.parameters())


def test_the_target_is_met_and_the_bundle_computes_the_same(tmp_path: Path) -> None:
    model = tiny(**CHANGES, hidden_size=256, intermediate_size=512)
    layers = calibrator(model).run()
    tensors = model.tensors()
    coded = Compressor(Native()).run({name: tensors[f"{name}.weight"].numpy() for name in model.quantized()})
    size = sum(part.nbytes for parts in coded.values() for part in parts.values())
    covered = [layer for layer in layers if layer.quantized]
    count = sum(layer.shape[0] * layer.shape[1] for layer in covered)
    assert 8 * size / count + 32 * sum(layer.shape[0] for layer in covered) / count == pytest.approx(5.0, rel=0.01)

    float_inputs = {layer.name for layer in layers if layer.fallback}
    assert len(float_inputs) == 1
    assert all(layer.input_loss > 0 for layer in covered)
    folder = tmp_path / "artifact"
    bundle.write(folder, tensors, coded, "W8A8S", Native(), model.save_description)
    bundle.verify(folder, tensors)
    found = bundle.read(folder).types
    assert {name for name, kind in found.items() if kind == "W8A16"} == float_inputs
    assert {kind for name, kind in found.items() if name not in float_inputs} == {"W8A8S"}
    assert load_bundle(folder).logits_checksum() == model.logits_checksum()


def test_the_same_seed_gives_the_same_integers() -> None:
    first, second = tiny(), tiny()
    for model in (first, second):
        calibrator(model).run()
    for key, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[key]), key


def test_known_statistics_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}

    def remember(compute: Any) -> Any:
        kept.setdefault("arrays", None)
        kept["arrays"] = kept["arrays"] or compute()
        return kept["arrays"]

    first, second = tiny(), tiny()
    calibrator(first).quantize(remember)
    monkeypatch.setattr(FisherStatistics, "add", None)
    other = calibrator(second, RDOQ(target_bits=4.0))
    other.quantize(remember)
    assert second.quantized() == first.quantized()
