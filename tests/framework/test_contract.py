"""What every framework answers, and that they answer alike: the same tiny LLaMA, the same texts, the same method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from slimrun.ops import bundle, load_bundle
from slimrun.ops.calibration.sequential import SequentialCalibrator
from slimrun.ops.calibration.smoothing import smooth
from slimrun.ops.calibration.states import Walk
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.nz import NZ
from slimrun.ops.errors import Unavailable
from slimrun.ops.framework.base import Device, Framework, LoadedModel
from slimrun.ops.framework.pytorch import PyTorch, TorchModel
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.none import NoQuantization
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.quant.w8a16 import W8A16

from ..conftest import CPU, TEXTS, described, tiny

METHODS: list[Quantizer] = [
    NoQuantization(),
    W8A8(),
    W8A8Dynamic(),
    W8A16(per_channel=False),
    W8A8S(fraction=0.05),
    W8A8S(fallback_level=2, observer="minmax", ignore=["*.o_proj"]),
    Lowbit(use_sigma=True, ignore_last_linear=False),
]
SMOOTHED = Lowbit(do_smooth=True)


def loaded(framework: Framework, **changes: object) -> LoadedModel:
    return framework.load(described(**changes).open(Path("unused")), CPU)


def plain_log_probs(model: TorchModel, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([ids])).logits[0].float()
    return torch.log_softmax(logits, dim=-1).numpy()


def write(framework: Framework, model: LoadedModel, quantizer: Quantizer, folder: Path) -> dict[str, torch.Tensor]:
    framework.calibrator(model, quantizer, TEXTS, 64).run()
    tensors = dict(model.tensors())
    coded = Compressor(NZ()).run({name: tensors[f"{name}.weight"].numpy() for name in model.quantized()})
    bundle.write(folder, tensors, coded, quantizer.quant_type, NZ(), model.save_description, framework.weight_file)
    bundle.verify(folder, tensors)
    return tensors


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
                             "original_max_position_embeddings": 64}},
        {"head_dim": 32},
    ],
    ids=["plain", "biases", "llama3", "yarn", "head_dim"],
)  # fmt: skip
def test_hidden_and_head_give_transformers_log_probs(framework: Framework, changes: dict[str, object]) -> None:
    model, reference = loaded(framework, **changes), tiny(**changes)
    ids = model.encode("some text of a few words, and enough of them to turn the positions a little further than that")
    hidden = model.hidden(np.array([ids]))
    assert hidden.shape == (1, len(ids), 64)
    log_probs, expected = model.log_probs(hidden[0]), plain_log_probs(reference, ids)
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)


def test_a_model_larger_than_memory_gives_the_same_scores_and_integers(framework: Framework) -> None:
    model = described(num_hidden_layers=3).open(Path("unused"))
    sides = [framework.load(model, Device("cpu", "cpu", max_memory={"cpu": bound})) for bound in (None, "8KiB")]
    assert [side.room.full for side in sides] == [False, True]
    for quantizer in (None, W8A8S(fraction=0.05), W8A8Dynamic()):
        if quantizer is not None:
            sides = [framework.load(model, Device("cpu", "cpu", max_memory={"cpu": bound})) for bound in (None, "8KiB")]
            for side in sides:
                framework.calibrator(side, quantizer, TEXTS, 64).run()
            one, other = (side.tensors() for side in sides)
            assert all(torch.equal(one[name], other[name]) for name in one)
        batches = [np.array([[5, 6, 7], [8, 9, 10]]), np.array([list(range(3, 80))])]
        for states, bounded in zip(*(cast(Any, side).hiddens(batches) for side in sides), strict=True):
            np.testing.assert_array_equal(states, bounded)
        questions = [(list(range(3, 90)), [[7, 8, 9], [100, 12]]), ([5], [[6]])]
        for scores, bounded in zip(*(cast(Any, side).all_continuations(questions) for side in sides), strict=True):
            for option, same in zip(scores, bounded, strict=True):
                np.testing.assert_array_equal(option, same)


def test_continuations_share_a_prefix_and_equal_scoring_each_alone(framework: Framework) -> None:
    model, reference = loaded(framework), tiny()
    prefix = model.encode("The answer is")
    options = [model.encode(text) for text in (" a", " something longer", " b!")]
    scored = model.continuations(prefix, options)
    for option, scores in zip(options, scored):
        whole = plain_log_probs(reference, prefix + option)
        expected = [whole[len(prefix) - 1 + i, token] for i, token in enumerate(option)]
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_generation_in_a_batch_equals_greedy_decoding_alone(framework: Framework) -> None:
    model, reference = loaded(framework), tiny()
    prompts = [model.encode(text) for text in ("a", "some longer prompt", "mid one")]
    answers = model.generate(prompts, max_new_tokens=6)
    for prompt, produced in zip(prompts, answers):
        expected, ids = [], list(prompt)
        for _ in range(6):
            token = int(plain_log_probs(reference, ids)[-1].argmax())
            if token == 2:  # </s>
                break
            expected.append(token)
            ids.append(token)
        assert produced == expected


def test_generation_stops_at_the_stop_token(framework: Framework) -> None:
    prompt = loaded(framework).encode("x")
    first = loaded(framework).generate([prompt], max_new_tokens=3)[0]
    model = loaded(framework, eos_token_id=first[1])
    assert model.generate([prompt], max_new_tokens=3) == [first[: first.index(first[1])]]


def test_nothing_asked_is_nothing_answered_and_what_is_no_token_is_refused(framework: Framework) -> None:
    model: Any = loaded(framework)
    prompt = model.encode("x")
    assert model.generate([], max_new_tokens=3) == []
    assert model.generate([prompt, prompt], max_new_tokens=0) == [[], []]
    assert model.continuations(prompt, []) == []
    with pytest.raises(ValueError, match=r"^max_new_tokens=-1 is out of range; allowed: 0 or more"):
        model.generate([prompt], max_new_tokens=-1)
    no_list = "is no list of token ids"
    kinds = [([], "is empty"), ("text", "is text"), ([5, 259], "holds 259, .* 0 to 258"), ([-1], "holds -1")]
    for wrong, reason in [*kinds, (["x"], no_list), (7, no_list)]:
        with pytest.raises(ValueError, match=rf"^prompt 2 {reason}"):
            model.generate([prompt, wrong], max_new_tokens=3)
        with pytest.raises(ValueError, match=rf"^prefix 1 {reason}"):
            model.continuations(wrong, [prompt])
        with pytest.raises(ValueError, match=rf"^option 1 {reason}"):
            model.continuations(prompt, [wrong])
    with pytest.raises(ValueError, match=r"^row 1 holds 300"):
        model.hidden(np.array([[1, 300]]))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("quantizer", [*METHODS, SMOOTHED], ids=lambda quantizer: type(quantizer).__name__)
def test_quantize_write_and_read_back(framework: Framework, quantizer: Quantizer, dtype: str, tmp_path: Path) -> None:
    model = framework.load(described(dtype).open(tmp_path), CPU)
    tensors = write(framework, model, quantizer, tmp_path / "artifact")
    assert len(model.quantized()) == sum(tensor.dtype == torch.int8 for tensor in tensors.values())
    again = framework.restore(tmp_path / "artifact", CPU)
    assert again.quantized() == model.quantized()
    assert again.logits_checksum() == model.logits_checksum()


def test_smoothing_leaves_the_float_function(framework: Framework) -> None:
    model, before = (loaded(framework, tie_word_embeddings=False) for _ in range(2))
    calibrator = cast(SequentialCalibrator, framework.calibrator(model, Lowbit(do_smooth=True), TEXTS, 64))
    network, ids = calibrator.network, np.array([model.encode("a text to see the difference on")])
    walk = Walk(network, calibrator.samples, 1)
    smoothed, notes = smooth(walk, calibrator.quantizer, set(network.linears()) - {"lm_head"})
    assert notes == []
    kinds = ("input_layernorm", "post_attention_layernorm")
    assert set(smoothed) == {f"model.layers.{layer}.{kind}" for layer in (0, 1) for kind in kinds}
    np.testing.assert_allclose(model.hidden(ids), before.hidden(ids), rtol=1e-3, atol=1e-4)
    assert {f"{name}.bias" for name in smoothed} <= model.tensors().keys()


@pytest.mark.mindspore
@pytest.mark.usefixtures("with_mindspore")
@pytest.mark.parametrize("quantizer", METHODS, ids=lambda quantizer: type(quantizer).__name__)
def test_frameworks_agree(quantizer: Quantizer, tmp_path: Path) -> None:
    mindspore = pytest.importorskip("slimrun.ops.framework.mindspore")
    frameworks: dict[str, Framework] = {"pytorch": PyTorch(), "mindspore": mindspore.MindSpore()}
    models = {name: loaded(framework) for name, framework in frameworks.items()}
    first, second = (write(frameworks[name], models[name], quantizer, tmp_path / name) for name in frameworks)
    assert first.keys() == second.keys()
    assert models["pytorch"].quantized() == models["mindspore"].quantized()
    for key, tensor in first.items():
        assert (tensor.dtype, tensor.shape) == (second[key].dtype, second[key].shape), key
        if key.endswith((".weight", ".weight_scale")):
            assert torch.equal(tensor, second[key]), key
        if key.endswith(".input_scale"):
            torch.testing.assert_close(tensor, second[key], rtol=0.01, atol=0)
    # either runs what the other wrote
    ids = np.array([models["pytorch"].encode("a text that both of them read")])
    outputs = [load_bundle(tmp_path / made, framework=run).hidden(ids) for made in frameworks for run in frameworks]
    for other in outputs[1:]:
        assert np.linalg.norm(other - outputs[0]) < 0.02 * np.linalg.norm(outputs[0])


def test_check_outlines_the_model_without_loading_it(framework: Framework, tmp_path: Path) -> None:
    outline = framework.check(described().open(tmp_path), CPU)
    model = tiny()
    assert outline.parameters == sum(parameter.numel() for parameter in model.module.parameters())
    assert len(outline.linears) == 15
    assert outline.linears["model.layers.0.self_attn.k_proj"] == (32, 64)
    assert framework.fingerprint(described().open(Path("unused"))) == loaded(framework).fingerprint
    assert framework.fingerprint(described().open(Path("unused"), seed=1)) != loaded(framework).fingerprint


def test_a_folder_is_loaded_and_damage_is_named(framework: Framework, tiny_folder: Path) -> None:
    model = Pretrained("mine", str(tiny_folder))
    ids = np.array([[5, 6, 7, 8]])
    np.testing.assert_allclose(framework.load(model.open(tiny_folder), CPU).hidden(ids), tiny().hidden(ids), atol=1e-5)
    weights = tiny_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(Unavailable, match=r"model\.safetensors"):
        framework.check(model.open(tiny_folder), CPU)
    with pytest.raises(Unavailable, match=r"no such folder"):
        framework.check(Pretrained("mine", "./nowhere").open(tiny_folder), CPU)


def test_a_missing_device_is_refused_with_the_next_step(framework: Framework) -> None:
    npu = Device("npu", "npu", module="torch_npu", install="install torch_npu and CANN")
    with pytest.raises(Unavailable, match=r"device=npu.* CANN"):
        framework.check(described().open(Path("unused")), npu)


def test_a_bundle_of_another_shape_is_refused(framework: Framework, tmp_path: Path) -> None:
    write(framework, loaded(framework), W8A8S(), tmp_path / "artifact")
    file = tmp_path / "artifact" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"intermediate_size": 96}))
    (tmp_path / "artifact" / "slimrun.json").unlink()  # it would see the change first
    with pytest.raises(ValueError, match=r"mlp\.\w+_proj:? has the shape \(\d+, \d+\), the model's has"):
        framework.restore(tmp_path / "artifact", CPU)
