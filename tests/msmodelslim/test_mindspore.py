"""msModelSlim's scripts and classes for MindSpore: from a checkpoint to a compressed one, and back."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.mindspore
ms = pytest.importorskip("mindspore", exc_type=ImportError)
if int(np.__version__.partition(".")[0]) >= 2:
    pytest.skip("MindSpore needs numpy < 2", allow_module_level=True)

from slimrun.msmodelslim import checkpoint, npy
from slimrun.msmodelslim.mindspore import Calibrator, QuantConfig
from slimrun.msmodelslim.restore import read_dat, verify
from slimrun.msmodelslim.weight_compression import CompressConfig, Compressor
from slimrun.ops.framework.mindspore import loading
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.weights import ckpt

from . import tiny_llama

SCRIPTS = Path(__file__).parents[1] / "seed_scripts"
FLOAT = "model.layers.0.attention.wo"  # disable_names of the scripts
SAMPLES = [[np.arange(3, 40)[None]], [np.arange(90, 250)[None]]]
Q = "model.layers.1.attention.wq"


@pytest.fixture
def model_ckpt(tmp_path: Path) -> Path:
    model = tiny_llama.load_model_and_tokenizer()[0]
    ms.save_checkpoint([*model.get_parameters()], str(tmp_path / "model.ckpt"))
    return tmp_path / "model.ckpt"


def calibrated(model_ckpt: Path, *values: Any, model: Any = None, **keywords: Any) -> Calibrator:
    model = model or tiny_llama.load_model_and_tokenizer()[0]
    calibrator = Calibrator(QuantConfig(*values, **keywords), model, str(model_ckpt), SAMPLES)
    calibrator.run()
    return calibrator


def test_the_guides_scripts(model_ckpt: Path) -> None:
    folder = model_ckpt.parent
    for script in ("sparse_quant", "extract", "compress"):
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / f"mindspore_{script}.py")],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert script != "sparse_quant" or "Save quant weight success!" in done.stdout
    weights = npy.load(folder / "quant_weight.npy")
    assert len(weights) == 13  # two layers of seven linears, one of them disabled
    assert stat.S_IMODE((folder / "quant_weight.npy").stat().st_mode) == 0o400
    parts = [folder / "compress" / part for part in ("weight", "index", "info")]
    verify(weights, read_dat(*parts))

    config = CompressConfig(record_detail_root=str(folder))
    coded = Compressor(config, str(folder / "quant_weight.npy")).run()
    merged = folder / "merged.ckpt"
    checkpoint.merge(folder / "quant_weight.ckpt", merged, *coded)
    sparse = ckpt.read(folder / "quant_weight.ckpt")
    restored = checkpoint.restore(merged)
    assert restored.keys() == sparse.keys()
    assert all(torch.equal(restored[key], sparse[key]) for key in sparse)
    assert {f"{Q}.{part}" for part in ("weight", "index", "info")} <= ckpt.read(merged).keys()
    assert stat.S_IMODE(merged.stat().st_mode) == 0o400


def test_the_saved_checkpoint_has_the_originals_keys_and_types(model_ckpt: Path) -> None:
    calibrated(model_ckpt, [FLOAT], 0.03).save(str(model_ckpt.with_name("q.ckpt")))
    saved, source = ckpt.read(model_ckpt.with_name("q.ckpt")), ckpt.read(model_ckpt)
    own = {key.removeprefix(f"{Q}."): (value.dtype, tuple(value.shape)) for key, value in saved.items() if Q in key}
    assert own == {
        "weight": (torch.int8, (64, 64)),
        "input_scale": (torch.float16, (1,)),
        "input_offset": (torch.int8, (1,)),
        "quant_bias": (torch.int32, (64,)),
        "deq_scale": (torch.int64, (64,)),
    }
    assert source.keys() <= saved.keys()
    quantized = {key.removesuffix(".deq_scale") for key in saved if key.endswith(".deq_scale")}
    assert len(quantized) == 13
    assert all(torch.equal(saved[key], source[key]) for key in source if key.removesuffix(".weight") not in quantized)

    # the numbers are those of the method
    expected = W8A8S(fraction=0.03, per_channel=True).quantize_weight(source[f"{Q}.weight"])
    assert torch.equal(saved[f"{Q}.weight"], expected.values)
    deq_scale = saved[f"{Q}.deq_scale"].to(torch.int32).view(torch.float32)
    scale = saved[f"{Q}.input_scale"].float() * expected.scale.reshape(-1)
    torch.testing.assert_close(deq_scale, scale, rtol=1e-6, atol=0)


def test_float_integers_for_readers_that_expect_them(model_ckpt: Path) -> None:
    calibrator = calibrated(model_ckpt, fraction=0.05)
    paths = {kind: model_ckpt.with_name(f"{kind}.ckpt") for kind in ("int8", "float32")}
    for kind, path in paths.items():
        calibrator.save(path, weight_dtype=kind)
    small, wide = (ckpt.read(path) for path in paths.values())
    assert wide[f"{Q}.weight"].dtype == torch.float32
    verify(small, wide)
    checkpoint.compress(paths["float32"], model_ckpt.with_name("merged.ckpt"))
    verify(small, checkpoint.restore(model_ckpt.with_name("merged.ckpt")))
    with pytest.raises(ValueError, match=r"weight_dtype = int4 is invalid; allowed: int8, float32"):
        calibrator.save(paths["int8"], weight_dtype="int4")


@pytest.mark.parametrize(
    ("keywords", "suffixes"),
    [
        ({"is_lowbit": True}, {"weight", "input_scale", "input_offset", "quant_bias", "deq_scale"}),
        ({"w_bit": 8, "a_bit": 16}, {"weight", "weight_scale", "weight_offset"}),
        ({"w_bit": 8, "is_dynamic": True}, {"weight", "weight_scale", "weight_offset"}),
    ],
    ids=["lowbit", "w8a16", "dynamic"],
)
def test_every_method_of_the_pytorch_path(model_ckpt: Path, keywords: dict[str, Any], suffixes: set[str]) -> None:
    path = model_ckpt.with_name("q.ckpt")
    calibrated(model_ckpt, **keywords).save(path)
    assert {key.removeprefix(f"{Q}.") for key in ckpt.read(path) if key.startswith(f"{Q}.")} == suffixes
    checkpoint.compress(path, model_ckpt.with_name("merged.ckpt"))
    verify(ckpt.read(path), checkpoint.restore(model_ckpt.with_name("merged.ckpt")))


def test_the_quantized_model_computes_and_stays_close(model_ckpt: Path) -> None:
    ids = ms.Tensor(np.arange(20, 90, dtype=np.int32)[None])
    model = tiny_llama.load_model_and_tokenizer()[0]
    loading.fill_float(model, ckpt.read(model_ckpt), model_ckpt)
    expected = model(ids).asnumpy()
    calibrator = calibrated(model_ckpt, w_bit=8, model=model)
    assert calibrator.fake_quantize_model() is model
    error = np.linalg.norm(model(ids).asnumpy() - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.1


def test_smoothed_norms_and_their_biases_are_saved(model_ckpt: Path) -> None:
    path = model_ckpt.with_name("q.ckpt")
    calibrated(model_ckpt, is_lowbit=True, do_smooth=True).save(path)
    saved, source = ckpt.read(path), ckpt.read(model_ckpt)
    added = {f"model.layers.{layer}.{norm}.bias" for layer in (0, 1) for norm in ("attention_norm", "ffn_norm")}
    assert {key for key in saved.keys() - source.keys() if key.endswith("norm.bias")} == added
    assert not torch.equal(saved["model.layers.0.ffn_norm.weight"], source["model.layers.0.ffn_norm.weight"])


def test_a_model_without_generate_is_called(model_ckpt: Path) -> None:
    by_generate = calibrated(model_ckpt)
    by_call = calibrated(model_ckpt, model=tiny_llama.TinyLlama())
    paths = [model_ckpt.with_name(name) for name in ("a.ckpt", "b.ckpt")]
    for calibrator, path in zip((by_generate, by_call), paths):
        calibrator.save(path)
    verify(*(ckpt.read(path) for path in paths))


def test_extraction_filters_by_pattern(model_ckpt: Path) -> None:
    path = model_ckpt.with_name("q.ckpt")
    calibrated(model_ckpt).save(path)
    extracted = checkpoint.extract(path, r"layers\.1\.feed_forward", [f"{Q}.weight"], model_ckpt.with_name("w.npy"))
    assert set(extracted) == {f"model.layers.1.feed_forward.w{number}.weight" for number in (1, 2, 3)}
    assert set(npy.load(model_ckpt.with_name("w.npy"))) == set(extracted)
    assert len(checkpoint.extract(path)) == 14
    with pytest.raises(ValueError, match="holds no int8 weight: a key that matches nothing"):
        checkpoint.extract(path, "nothing")
    with pytest.raises(ValueError, match="is no regular expression"):
        checkpoint.extract(path, "(")
    with pytest.raises(ValueError, match="takes too long"):
        checkpoint.extract(path, r"^(.|..|...)+(?<=\d)$")
    with pytest.raises(ValueError, match=r"expected a matrix of integers"):
        checkpoint.extract(path, "norm")
    with pytest.raises(ValueError, match=r"disable_names has invalid key `x`"):
        checkpoint.extract(path, None, ["x"])


def test_a_damaged_merged_checkpoint_is_named(model_ckpt: Path) -> None:
    path, merged = model_ckpt.with_name("q.ckpt"), model_ckpt.with_name("merged.ckpt")
    calibrated(model_ckpt).save(path)
    checkpoint.compress(path, merged)
    tensors = ckpt.read(merged)
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"] ^ 16
    ckpt.write(merged, tensors)
    with pytest.raises(ValueError, match=rf"merged.ckpt: {Q}.weight"):
        checkpoint.restore(merged)
    with pytest.raises(ValueError, match=r"was not merged here"):
        checkpoint.restore(path)
    merged.unlink()
    weights = checkpoint.extract(path)
    weight, index, info = Compressor(CompressConfig(), weight=weights).run()
    weight[f"{Q}.weight"] = weight["model.layers.1.attention.wk.weight"]
    with pytest.raises(ValueError, match=Q):
        checkpoint.merge(path, merged, weight, index, info)
    assert not merged.exists()


def test_bad_input_is_one_clear_line(model_ckpt: Path) -> None:
    def refused(expected: str, kind: type[Exception] = ValueError, **changes: Any) -> None:
        arguments = {
            "cfg": QuantConfig(),
            "model": tiny_llama.load_model_and_tokenizer()[0],
            "model_ckpt": str(model_ckpt),
            "calib_data": SAMPLES,
        }
        with pytest.raises(kind, match=expected):
            Calibrator(**arguments | changes)

    refused(
        "`disable_names` has invalid key `model.layers.0.attention.wx`",
        cfg=QuantConfig(["model.layers.0.attention.wx"]),
    )
    refused("calib_data must be list, not tuple", TypeError, calib_data=())
    refused("calib_data is empty", calib_data=[])
    refused(
        r"calib_data\[0\]\[0\] has the shape \(7,\), expected tokens \[batch, length\]", calib_data=[[np.arange(7)]]
    )
    refused("model must be Cell, not str", TypeError, model="m")
    refused("doesn't exist or not a file", FileNotFoundError, model_ckpt="none.ckpt")
    refused("doesn't endswith", model_ckpt="model.npy")
    for name, changed in {"lacks model.layers.1.attention.wq.weight": None, "has the shape": torch.zeros(3, 3)}.items():
        tensors = ckpt.read(model_ckpt)
        tensors.pop(f"{Q}.weight")
        other = model_ckpt.with_name("other.ckpt")
        ckpt.write(other, tensors if changed is None else tensors | {f"{Q}.weight": changed})
        refused(name, model_ckpt=other)
    quantized = model_ckpt.with_name("q.ckpt")
    calibrated(model_ckpt).save(quantized, weight_dtype="float32")
    refused(r"q.ckpt holds model\.\S+: its weights look quantized already; give the float model", model_ckpt=quantized)
    other.unlink()
    other.write_bytes(b"no checkpoint")
    refused("is no MindSpore checkpoint", model_ckpt=other)
    with pytest.raises(ValueError, match=r"dev_type is for PyTorch; call mindspore.set_device"):
        QuantConfig(dev_type="npu")
    with pytest.raises(TypeError, match="fraction must be float"):
        QuantConfig(fraction=1)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        refused("calibration in graph mode would see nothing")
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
