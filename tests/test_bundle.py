"""The bundle: written atomically with the right permissions, read back bit for bit, refused when damaged."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from slimrun.ops import bundle, load_bundle
from slimrun.ops.compress.base import Codec
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native
from slimrun.ops.compress.none import NoCompression
from slimrun.ops.compress.nz import NZ
from slimrun.ops.framework.pytorch import PyTorch, TorchModel
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.none import NoQuantization
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.quant.w8a16 import W8A16
from slimrun.ops.weights import safetensors

from .conftest import CPU, TEXTS, tiny

DAMAGE_STEP = 997  # every so many bytes of the weight file: a prime, so that all parts of it are hit


def write(folder: Path, model: TorchModel, quantizer: Quantizer, codec: Codec) -> dict[str, torch.Tensor]:
    PyTorch().calibrator(model, quantizer, TEXTS, 64).run()
    tensors = model.tensors()
    weights = {name: tensors[f"{name}.weight"].numpy() for name in model.quantized()}
    bundle.write(folder, tensors, Compressor(codec).run(weights), quantizer.quant_type, codec, model.save_description)
    return tensors


@pytest.fixture
def artifact(tmp_path: Path, tiny_model: TorchModel) -> Path:
    write(tmp_path / "artifact", tiny_model, W8A8S(), Native(tile_size=4096))
    return tmp_path / "artifact"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "quantizer",
    [
        NoQuantization(),
        W8A8(),
        W8A8Dynamic(),
        W8A16(per_channel=False),
        W8A8S(per_channel=False),
        W8A8S(fallback_level=3),
        Lowbit(do_smooth=True, fallback_level=2),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    ("codec", "tied"), [(NoCompression(), True), (Native(), False), (NZ(), True)], ids=["none", "native", "nz"]
)
def test_the_reloaded_model_computes_the_same(
    tmp_path: Path, dtype: str, quantizer: Quantizer, codec: Codec, tied: bool
) -> None:
    model = tiny(dtype, tie_word_embeddings=tied, attention_bias=True)
    tensors = write(tmp_path / "artifact", model, quantizer, codec)
    bundle.verify(tmp_path / "artifact", tensors)
    assert ("lm_head.weight" in tensors) is not tied
    restored = PyTorch().restore(tmp_path / "artifact", CPU)
    assert restored.logits_checksum() == model.logits_checksum()
    assert restored.quantized() == model.quantized()
    prompt = model.encode_prompt("Hello")
    assert restored.generate([prompt], 5) == model.generate([prompt], 5)


def test_a_fresh_process_reproduces_the_logits_from_the_path_alone(artifact: Path, tiny_model: TorchModel) -> None:
    script = "import sys, slimrun; print(slimrun.load_bundle(sys.argv[1]).logits_checksum())"
    process = subprocess.run([sys.executable, "-c", script, str(artifact)], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == tiny_model.logits_checksum()


def test_layout_types_and_permissions(artifact: Path) -> None:
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in artifact.iterdir()}
    assert stat.S_IMODE(artifact.stat().st_mode) == 0o750
    assert modes.pop("quant_model_weight_w8a8sc.safetensors") == 0o400
    assert set(modes.values()) == {0o600}
    assert {"config.json", "tokenizer.json", "quant_model_description_w8a8sc.json"} <= modes.keys()

    description = json.loads((artifact / "quant_model_description_w8a8sc.json").read_text())
    stored = load_file(artifact / "quant_model_weight_w8a8sc.safetensors")
    assert description["model_quant_type"] == "W8A8SC"
    assert description["container"] == {"name": "slimrun", "version": 1}
    assert stored.keys() == description.keys() - {"model_quant_type", "container"}
    name = "model.layers.0.mlp.up_proj"
    for suffix, dtype in (
        ("weight", torch.int8),
        ("index", torch.int8),
        ("info", torch.int64),
        ("input_scale", torch.float32),
    ):
        assert description[f"{name}.{suffix}"] == "W8A8SC"
        assert stored[f"{name}.{suffix}"].dtype == dtype
        assert stored[f"{name}.{suffix}"].ndim == 1
    assert description["model.embed_tokens.weight"] == "FLOATC"
    assert description["model.norm.weight"] == "FLOAT", "too small to gain"


def test_config_says_rope_theta_for_new_and_old_readers(artifact: Path) -> None:
    config = json.loads((artifact / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]


def test_writing_again_replaces_and_leaves_nothing_else(artifact: Path) -> None:
    model = tiny()
    write(artifact, model, W8A8(), NoCompression())
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]
    assert load_bundle(artifact).logits_checksum() == model.logits_checksum()


def test_the_weight_file_is_what_its_library_writes(tmp_path: Path) -> None:
    shapes = [(), (0, 3), (3,), (2, 5)]
    tensors = {
        f'{name}"\\ä{len(shape)}': torch.full(shape, 1).to(dtype)
        for name in ("b", "a", "model.é", "model.z")
        for shape, dtype in zip(shapes, [torch.bool, torch.uint8, torch.bfloat16, torch.int64], strict=True)
    }
    for dtype in (torch.int8, torch.int16, torch.int32, torch.float16, torch.float32, torch.float64):
        tensors[f"{dtype}"] = torch.rand(7).mul(9).to(dtype)
    done: list[Tensor] = []
    safetensors.write(tmp_path / "ours", tensors, tensors.__getitem__, done.extend)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sorted(map(id, done)) == sorted(map(id, tensors.values()))


@pytest.mark.parametrize("at", ["safetensors.write", "os.fsync", "os.rename", "description"])
def test_a_full_disk_leaves_no_half_bundle_and_keeps_the_old_one(
    artifact: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in artifact.iterdir()}
    full = OSError(errno.ENOSPC, "No space left on device")
    model = tiny()

    def fail(*arguments: object, **_: object) -> None:
        if at == "safetensors.write":
            Path(str(arguments[0])).write_bytes(b"half")
        if at != "os.rename" or arguments[0] == artifact:
            raise full
        os.replace(*map(str, arguments))

    if at == "description":
        monkeypatch.setattr(model, "save_description", fail)
    else:
        monkeypatch.setattr("slimrun.ops.bundle.writer._exchange", lambda first, second: False)
        monkeypatch.setattr(f"slimrun.ops.bundle.writer.{at}", fail)
    with pytest.raises(OSError, match="No space left"):
        write(artifact, model, W8A8(), NoCompression())
    monkeypatch.undo()
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]
    assert {file.name: file.read_bytes() for file in artifact.iterdir()} == before


def test_every_damaged_byte_of_coded_weights_is_noticed(artifact: Path) -> None:
    file = artifact / "quant_model_weight_w8a8sc.safetensors"
    file.chmod(0o600)
    name = "model.layers.0.mlp.up_proj"
    stored = load_file(file)
    for suffix in ("weight", "index", "info"):
        tensor = stored[f"{name}.{suffix}"]
        flat = tensor.view(torch.uint8)
        for position in range(0, flat.numel(), DAMAGE_STEP if suffix == "weight" else 1):
            damaged = {key: value.clone() for key, value in stored.items() if key.startswith(name)}
            damaged[f"{name}.{suffix}"].view(torch.uint8)[position] ^= 1 << (position % 8)
            parts = {key: damaged[f"{name}.{key}"].numpy() for key in ("info", "index", "weight")}
            with pytest.raises(ValueError, match=r".+"):
                Native().decode(parts)


def rewrite(artifact: Path, change: dict[str, torch.Tensor | None]) -> None:
    """As in a bundle without a manifest."""
    (artifact / "slimrun.json").unlink()
    file = artifact / "quant_model_weight_w8a8sc.safetensors"
    stored = load_file(file) | change
    file.chmod(0o600)
    save_file({key: value for key, value in stored.items() if value is not None}, file)


NAME = "model.layers.1.self_attn.o_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{NAME}.index": None}, f"{NAME}: lacks .index"),
        ({f"{NAME}.weight": torch.zeros(3, dtype=torch.int8)}, f"{NAME}: "),
        ({f"{NAME}.deq_scale": None}, f"{NAME} lacks deq_scale"),
        ({"model.norm.weight": None}, "missing .'model.norm.weight'"),
        ({"stranger": torch.zeros(1)}, "holds stranger, which its description does not name"),
    ],
)
def test_missing_and_strange_tensors_are_named(
    artifact: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    rewrite(artifact, change)
    with pytest.raises(ValueError, match=message):
        load_bundle(artifact)


def test_another_container_or_no_bundle_is_refused(artifact: Path, tmp_path: Path) -> None:
    description = artifact / "quant_model_description_w8a8sc.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"container": {"name": "ascend", "version": 7}}))
    with pytest.raises(ValueError, match=r"container ascend 7 is not known here; known: slimrun 1"):
        load_bundle(artifact)
    description.write_text("{ not json")
    with pytest.raises(ValueError, match=r"quant_model_description_w8a8sc.json"):
        load_bundle(artifact)
    with pytest.raises(ValueError, match="is no bundle"):
        load_bundle(tmp_path)


def test_verify_names_the_tensor_that_differs(artifact: Path, tiny_model: TorchModel) -> None:
    tensors = tiny_model.tensors()
    changed = tensors[f"{NAME}.weight"].clone()
    changed[0, 0] ^= 1
    with pytest.raises(ValueError, match=f"{NAME}.weight read back differs"):
        bundle.verify(artifact, tensors | {f"{NAME}.weight": changed})
    with pytest.raises(ValueError, match="does not hold the model's tensors: stranger"):
        bundle.verify(artifact, tensors | {"stranger": torch.zeros(1)})


def test_nan_in_float_tensors_compares_by_bits(tmp_path: Path, tiny_model: TorchModel) -> None:
    tensors = write(tmp_path / "b", tiny_model, NoQuantization(), NoCompression())
    assert np.isfinite(tensors["model.norm.weight"].numpy()).all()
    with torch.no_grad():
        tiny_model.module.model.norm.weight[0] = float("nan")
    tensors = tiny_model.tensors()
    bundle.write(tmp_path / "b", tensors, {}, "FLOAT", NoCompression(), tiny_model.save_description)
    bundle.verify(tmp_path / "b", tensors)
