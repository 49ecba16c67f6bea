"""Rate-distortion optimized quantization of whole models: what it measures, folds, meets and leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimrun.ops import bundle, load_bundle
from slimrun.ops.calibration import search
from slimrun.ops.calibration.base import Arrays, Sample, silent
from slimrun.ops.calibration.rdoq import rounding
from slimrun.ops.calibration.rdoq.attribution import AttributedLinear, corrections, measured_shares
from slimrun.ops.calibration.rdoq.calibrator import RateDistortionCalibrator
from slimrun.ops.calibration.rdoq.factors import Factors
from slimrun.ops.calibration.rdoq.head import Teacher
from slimrun.ops.calibration.rdoq.rounding import Rounding
from slimrun.ops.calibration.search import PASSES, next_level
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native
from slimrun.ops.format.arithmetic import QuantizedWeight
from slimrun.ops.format.weights import round_to_grid
from slimrun.ops.framework.pytorch import PyTorch, TorchModel
from slimrun.ops.framework.pytorch.network import TorchNetwork
from slimrun.ops.memory import Room
from slimrun.ops.model.linears import linear_names
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.feedback import importance
from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.rdoq import RDOQ, Fallback
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8s import W8A8S

from ..conftest import TEXTS, tiny

CHANGES: dict[str, Any] = {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
QUANTIZER = RDOQ(target_bits=5.0, fallback=Fallback(0.1))


def calibrator(model: TorchModel, quantizer: RDOQ = QUANTIZER) -> RateDistortionCalibrator:
    made = PyTorch().calibrator(model, quantizer, TEXTS, 64)
    assert isinstance(made, RateDistortionCalibrator)
    return made


def test_the_target_is_met_and_the_bundle_computes_the_same(tmp_path: Path) -> None:
    model = tiny(**CHANGES, hidden_size=256, intermediate_size=512)
    layers = calibrator(model).run()
    tensors = model.tensors()
    coded = Compressor(Native()).run({name: tensors[f"{name}.weight"].numpy() for name in model.quantized()})
    size = sum(part.nbytes for parts in coded.values() for part in parts.values())
    covered = [layer for layer in layers if layer.quantized]
    count = sum(layer.shape[0] * layer.shape[1] for layer in covered)
    assert 8 * size / count + 32 * sum(layer.shape[0] for layer in covered) / count == pytest.approx(5.0, rel=0.01)

    float_inputs = {layer.name for layer in layers if layer.float_inputs}
    assert len(float_inputs) == 1
    assert all(layer.input_loss > 0 for layer in covered)
    folder = tmp_path / "artifact"
    bundle.write(folder, tensors, coded, "W8A8S", Native(), model.save_description)
    bundle.verify(folder, tensors)
    types = bundle.read(folder).types
    assert {name for name, kind in types.items() if kind == "W8A16"} == float_inputs
    assert {kind for name, kind in types.items() if name not in float_inputs} == {"W8A8S"}
    assert load_bundle(folder).logits_checksum() == model.logits_checksum()


def test_the_same_seed_gives_the_same_integers() -> None:
    first, second = tiny(), tiny()
    for model in (first, second):
        calibrator(model).run()
    for key, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[key]), key


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_the_search_for_a_loss_ends(noise: float, floor: float) -> None:
    generator = np.random.default_rng(0)
    tried = [(0.0, 1.3)]
    while abs(tried[-1][1]) > 0.01:
        place = next_level(tried)
        loss = (np.exp(2.3 * place) * 0.3 + floor) * np.exp(noise * generator.standard_normal())
        tried.append((place, float(np.log(loss / 0.1))))
    assert len(tried) <= PASSES


def test_a_loss_is_met(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(search, "KL_TOLERANCE", 0.1)  # so small a model changes by leaps
    model = tiny(initializer_range=0.1, hidden_size=128, intermediate_size=256)  # smaller ones leap past it
    with caplog.at_level("INFO"):
        layers = calibrator(model, RDOQ(target_kl=0.05, tune_rate=0.0, fallback=Fallback(0.1))).run()
    assert float(caplog.messages[-1].split()[-1]) == pytest.approx(0.05, rel=0.11)
    assert sum(layer.float_inputs for layer in layers) == 1
    with pytest.raises(ValueError, match=r"target_kl=0\.02 is measured on prompts held out: .* not 1"):
        PyTorch().calibrator(tiny(), RDOQ(target_kl=0.02), TEXTS[:1], 64)


def test_targets_out_of_reach_are_refused() -> None:
    narrow = tiny(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8)
    method = calibrator(narrow, RDOQ(target_bits=1.5))  # a row's step alone takes two bits a weight
    with pytest.raises(ValueError, match=r"target_bits=1.5 is out of reach: 10 roundings end at \d"):
        method.quantize()
    method = calibrator(tiny(), RDOQ(target_kl=2.0, tune_rate=0.0))  # it knows nothing that it could lose
    with pytest.raises(ValueError, match=r"target_kl=2.0 is out of reach: the nearest loss found is \d"):
        method.quantize()


@pytest.mark.parametrize("grid", [W8A8(), Lowbit(), Lowbit(open_outlier=False), W8A8S(per_channel=False)])
def test_steps_of_another_method(grid: Quantizer, tmp_path: Path) -> None:
    """Its steps and its format, on the smoothed model; rounding with feedback loses less than the method itself."""
    plain, fed = tiny(**CHANGES), tiny(**CHANGES)
    quantizer = RDOQ(grid=grid, smooth_alpha=None, tune_rate=0.0, price=0.0, fallback=Fallback(0.0))
    PyTorch().calibrator(plain, grid, TEXTS, 64).quantize()
    method = calibrator(fed, quantizer)
    method.quantize()
    theirs = {name: plain.module.get_submodule(name).weight for name in plain.quantized()}
    assert plain.quantized() == fed.quantized()
    for name, one in method._ranges.items():
        weight = one.weight
        assert int(weight.values.abs().max()) <= grid.levels
        expected = grid.quantize_weight(tiny(**CHANGES).module.get_submodule(name).weight)
        torch.testing.assert_close(weight.scale, expected.scale.expand_as(weight.scale))
    assert any(not torch.equal(method._ranges[name].weight.values, values) for name, values in theirs.items())
    method.calibrate()
    tensors = fed.tensors()
    bundle.write(tmp_path / "a", tensors, {}, quantizer.quant_type, Native(), fed.save_description)
    assert quantizer.quant_type == grid.quant_type


def test_steps_of_another_method_do_not_clip_what_smoothing_made_large() -> None:
    weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[:, 3] = 30.0
    factors = Factors(Room())
    factors["a"] = importance(torch.eye(200), torch.ones(8), 0.1)
    factors.rows["a"] = ("a", torch.ones(8))
    assert float(Lowbit().quantize_weight(weight).scale.max()) * 127 < 2  # its own steps would
    method = Rounding(RDOQ(grid=Lowbit(), price=0.0), {"a": weight}, factors, Room(), silent)
    rounded = method.at(None)["a"]
    assert float((rounded.values * rounded.scale - weight)[:, 3].abs().max()) <= 0.51 * float(rounded.scale.max())


@pytest.mark.parametrize(("nearest", "met"), [(3.49, True), (3.4, False)])
def test_a_target_that_is_missed_by_leaps_is_nearly_met(
    nearest: float, met: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Rounding(RDOQ(), {"a": torch.ones(4, 64)}, Factors(Room()), Room(), silent)
    sizes = iter([3.6, nearest] * (PASSES // 2))
    monkeypatch.setattr(method, "bits", lambda weights: next(sizes))
    if met:
        assert method.at_bits(3.5).keys() == {"a"}
    else:
        with pytest.raises(ValueError, match=r"target_bits=3\.5 is out of reach: 10 roundings end at 3\.4"):
            method.at_bits(3.5)
    assert next(sizes, None) is None


def test_some_rows_tell_the_level_that_all_need(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rounding, "MANY", 0)
    with caplog.at_level("INFO"):
        calibrator(tiny(hidden_size=256, intermediate_size=512), RDOQ(target_bits=3.55)).run()
    said = [message.split() for message in caplog.messages if message.startswith("rounding")]
    assert [" ".join(words[: words.index("level")]) for words in said[:3]] == [
        "rounding to measure:",
        "rounding of some rows:",
        "rounding 1:",
    ]
    assert float(said[2][-4]) == pytest.approx(3.55, rel=0.003)


def test_weights_alone() -> None:
    model = tiny()
    layers = calibrator(model, RDOQ(target_bits=5.0, activations="float")).run()
    tensors = model.tensors()
    assert not any(key.endswith(("input_scale", "deq_scale")) for key in tensors)
    assert all(f"{layer.name}.weight_scale" in tensors for layer in layers if layer.quantized)
    assert not any(layer.float_inputs for layer in layers)


def test_tuning_moves_steps_alone_and_lowers_the_loss() -> None:
    plain, tuned, model = tiny(initializer_range=0.1), tiny(initializer_range=0.1), tiny(initializer_range=0.1)
    for one, rate in ((plain, 0.0), (tuned, 0.01)):
        calibrator(one, RDOQ(target_bits=3.5, activations="float", tune_rate=rate)).run()
    for key, tensor in plain.tensors().items():
        if not key.endswith("weight_scale"):
            assert torch.equal(tensor, tuned.tensors()[key]), key
    samples = [np.array([plain.encode(text)[:64]]) for text in TEXTS]
    expected, *log_probs = (
        torch.cat([torch.from_numpy(one.log_probs(one.hidden(ids)[0])) for ids in samples])
        for one in (model, plain, tuned)
    )
    before, after = (float((expected.exp() * (expected - one)).sum()) for one in log_probs)
    assert after < 0.9 * before


def test_shares_of_the_loss_add_up_to_it() -> None:
    """They are measured on the rounded model; a linear without errors has none."""
    exact, rounded = tiny(initializer_range=0.1), tiny(initializer_range=0.1)
    linears: dict[str, AttributedLinear] = {}
    for index, name in enumerate(linear_names(exact.module.base_model)):
        name = f"model.{name}"
        weight = exact.module.get_submodule(name).weight.detach()
        steps = torch.full((len(weight), 1), 0.02) if index else torch.ones(len(weight), 1)
        values = round_to_grid(weight, steps) if index else weight
        linears[name] = AttributedLinear(QuantizedWeight(values, steps), weight, None)
        rounded.module.set_submodule(name, linears[name])
    ids = [torch.tensor([exact.encode(text)[:64]]) for text in TEXTS]
    head = exact.module.lm_head
    with torch.no_grad():
        targets, states = (
            [model.module.base_model(input_ids=one).last_hidden_state[0] for one in ids] for model in (exact, rounded)
        )
        log_probs = [[torch.log_softmax(head(one), dim=-1) for one in both] for both in zip(targets, states)]
    loss = sum(float((a.exp() * (a - b)).sum()) / len(a) for a, b in log_probs) / len(ids)
    samples: list[Sample] = [{"input_ids": one} for one in ids]
    network = TorchNetwork(exact.module)
    with torch.no_grad():
        parts = network.tell_parts(samples[0])
        shares = measured_shares(network, linears, Teacher(samples, targets, head), parts, Room(), silent)
    first, *others = shares
    assert shares[first] == 0
    assert all(shares[name] != 0 for name in others)
    assert sum(shares.values()) == pytest.approx(loss, rel=0.1)


def test_corrections_go_by_the_loss_a_weight() -> None:
    factors = corrections(
        {"even": 0.1, "twice": 0.2, "good": -1e-4, "bad": 1.0}, {"even": 40, "twice": 40, "good": 40, "bad": 400}
    )
    assert factors == pytest.approx({"even": 1, "twice": 2, "good": 0.25, "bad": 1}, rel=0.01)
    assert corrections({"lost nothing": 0.0}, {"lost nothing": 4}) == {}


def test_a_first_rounding_corrects_and_leaves_the_model_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linears that are seen to lose more get finer steps, the bits stay."""
    steps = []
    for prompts in (0, 2):
        model = tiny(initializer_range=0.1)
        ids = np.array([model.encode(TEXTS[0])[:64]])
        before = model.hidden(ids)
        method = calibrator(model, RDOQ(target_bits=4.0, tune_rate=0.0, smooth_alpha=None, measured_prompts=prompts))
        correct, seen = method._correct, []

        def corrected(rounding: Rounding, *more: Any) -> None:
            correct(rounding, *more)  # noqa: B023
            seen.append(rounding.factors.corrections)  # noqa: B023
            np.testing.assert_array_equal(model.hidden(ids), before)  # noqa: B023

        monkeypatch.setattr(method, "_correct", corrected)
        method.quantize()
        steps.append({name: float(one.weight.scale.log().mean()) for name, one in method._ranges.items()})
        assert len(seen) == (prompts > 0)
    changes = np.array([steps[1][name] - steps[0][name] for name in steps[0]])
    asked = np.array([seen[0][name] for name in steps[0]])
    assert np.corrcoef(changes, np.log(asked))[0, 1] < -0.9


def test_what_is_measured_at_one_size_is_remembered_at_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MANY", 0)  # lengths of codes are then learned of some rows
    known: dict[str, Arrays] = {}
    measured: list[str] = []

    def remember(compute: Callable[[], Arrays], part: str = "") -> Arrays:
        if part not in known:
            known[part] = compute()
            measured.append(part)
        return known[part]

    def quantized(**knobs: Any) -> dict[str, torch.Tensor]:
        model = tiny(initializer_range=0.1)
        method = calibrator(model, RDOQ(**knobs))
        method.quantize(remember)
        method.calibrate()
        return {key: tensor for key, tensor in model.tensors().items() if key.endswith((".weight", "_scale"))}

    quantized()
    assert sum(part.startswith("corrections") for part in measured) == 1
    measured.clear()
    at_four = quantized(target_bits=4.0)
    quantized(target_bits=3.0, tune_rate=0.0, fallback=Fallback(0.2))
    assert not measured
    quantized(target_bits=4.0, price=0.0)
    assert [part.split()[0] for part in measured] == ["corrections"]
    known.clear()
    anew = quantized(target_bits=4.0)
    assert all(torch.equal(tensor, anew[key]) for key, tensor in at_four.items())


def test_the_output_layer_can_be_quantized_too() -> None:
    model = tiny(tie_word_embeddings=False)
    layers = calibrator(model, RDOQ(target_bits=5.0, ignore_last_linear=False)).run()
    assert layers[-1].name == "lm_head"
    assert layers[-1].quantized
    assert "lm_head" in model.quantized()
