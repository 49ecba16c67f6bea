"""What all targets share: folders are whole or not there, what is checked holds, and the command line."""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slimrun.ops.compress.base import Codec
from slimrun.ops.compress.native import Native
from slimrun.ops.compress.none import NoCompression
from slimrun.ops.compress.nz import NZ
from slimrun.ops.export import base
from slimrun.ops.export.base import Target
from slimrun.ops.export.checks import Held
from slimrun.ops.export.compressed_tensors import CompressedFiles, CompressedTensors
from slimrun.ops.export.mindie import MindIE
from slimrun.ops.export.plan import Change
from slimrun.ops.export.source import step_of
from slimrun.ops.export.vllm_ascend import VllmAscend
from slimrun.ops.export.vllm_ascend_310p import VllmAscend310P
from slimrun.ops.quant.none import NoQuantization
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.runner import export

from ..conftest import tiny
from .bundles import write, written


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    written(tmp_path / "artifact", W8A8S())
    return tmp_path / "artifact"


def test_the_folder_has_the_permissions_of_a_bundle(artifact: Path) -> None:
    folder = CompressedTensors().run(artifact, artifact.parent / "export").folder
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert modes.pop("model.safetensors") == 0o400
    assert set(modes.values()) == {0o600}
    assert sorted(path.name for path in artifact.parent.iterdir()) == ["artifact", "export"]


def test_a_failed_check_leaves_nothing(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = CompressedFiles.linear

    def one_bit_off(self: CompressedFiles, name: str, kind: str) -> object:
        held = read(self, name, kind)
        held.values[0, 0] ^= 1
        return held

    monkeypatch.setattr(CompressedFiles, "linear", one_bit_off)
    with pytest.raises(ValueError, match="the integers differ from the bundle's"):
        CompressedTensors().run(artifact, artifact.parent / "export")
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]


def test_what_the_disk_refuses_leaves_nothing(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(base, "sync", refused)
    with pytest.raises(OSError, match="Input/output error"):
        CompressedTensors().run(artifact, artifact.parent / "export")
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: replace(held, grid=(held.grid[0], held.grid[1] + 1)), "the input grid .* is not the bundle's"),
        (lambda held: replace(held, step=held.step * 1.1), "a step changes by 10.00%"),
        (lambda held: replace(held, bias=held.step * 1e4), "on equal input the outputs differ by"),
    ],
)
def test_what_differs_is_named(
    artifact: Path, change: Callable[[Held], Held], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = CompressedFiles.linear
    monkeypatch.setattr(CompressedFiles, "linear", lambda self, name, kind: change(read(self, name, kind)))
    with pytest.raises(ValueError, match=message):
        CompressedTensors().run(artifact, artifact.parent / "export")


def test_a_damaged_tensor_of_the_bundle_is_named(artifact: Path) -> None:
    file = artifact / "quant_model_weight_w8a8sc.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not what was written: it differs from slimrun\.json"):
        CompressedTensors().run(artifact, artifact.parent / "export")


def asks_transformers(*arguments: object) -> None:
    raise AssertionError("the bundle says what the float model's tensors are")


def test_the_float_models_tensors_are_known_without_its_code(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimrun.ops.model.skeleton.shapes_of", asks_transformers)
    CompressedTensors().run(artifact, artifact.parent / "export")
    without_float_model(artifact)
    with pytest.raises(ValueError, match="the bundle says what"):
        CompressedTensors().run(artifact, artifact.parent / "again")


def without_float_model(artifact: Path) -> None:
    """Make an older bundle of it."""
    manifest = artifact / "slimrun.json"
    said = json.loads(manifest.read_text())
    assert said.pop("float_model")
    manifest.write_text(json.dumps(said))


def test_an_older_bundle_gives_the_same(artifact: Path) -> None:
    new = CompressedTensors().run(artifact, artifact.parent / "new")
    without_float_model(artifact)
    old = CompressedTensors().run(artifact, artifact.parent / "old")
    assert new.checks == old.checks
    for file in new.folder.iterdir():
        assert file.read_bytes() == (old.folder / file.name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, r"^model\.norm\.weight is no tensor of the float model"),
        ({"model.norm.bias": (64,)}, r"the float model has model\.norm\.bias more"),
        ({"model.norm.weight": (63,)}, r"model\.norm\.weight has the shape \(64,\), the float model's has \(63,\)"),
        (
            {"model.layers.0.mlp.up_proj.weight": (9, 9)},
            r"up_proj\.weight has the shape .*, the float model's has \(9, 9\)",
        ),
    ],
)
def test_every_name_and_shape_is_the_float_models(
    tmp_path: Path, change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    model = tiny()
    shapes = {**model.shapes, **change}
    model.shapes = {key: shape for key, shape in shapes.items() if shape is not None}
    write(tmp_path / "artifact", model, W8A8S())
    with pytest.raises(ValueError, match=message):
        CompressedTensors().run(tmp_path / "artifact", tmp_path / "export")


def test_the_step_is_the_one_whose_product_is_deq_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.rand(10_000, generator=generator) * 1e-3 + 1e-6
    for scale in (0.0123, 0.5, 1.7e-3):
        deq_scale = steps * scale
        step = step_of(deq_scale, scale)
        assert torch.equal(step * scale, deq_scale)
        assert float((step / steps - 1).abs().max()) < 2e-7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onnx"], "--to onnx: no such target; allowed: ckpt, compressed-tensors, gguf, mindie, vllm-ascend"),
        (
            ["--to", "compressed-tensors", "--dtype", "int4"],
            "--dtype int4 is nothing that compressed-tensors runs; allowed",
        ),
        (["--to", "compressed-tensors", "--shard-gb", "0"], "--shard-gb 0.0 is out of range; allowed: more than 0"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["slimrun-export", str(tmp_path), str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit, match="2"):
        export.main()
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("artifact", "lie one in the other; give a folder beside it"),
        ("artifact/sub/sub", "lie one in the other; give a folder beside it"),
        ("link/sub", "lie one in the other; give a folder beside it"),
        (".", "lie one in the other; give a folder beside it"),
        ("full", "full is there already; remove it, or give another folder"),
        ("dangling", "dangling is a link to nothing; remove it, or give another folder"),
        ("dangling/sub", "dangling is a link to nothing; remove it, or give another folder"),
        ("full/file", "file is a file; remove it, or give another folder"),
        ("full/file/sub/sub", "file is a file; remove it, or give another folder"),
        ("n" * 300, "nnn: File name too long"),
    ],
)
def test_a_place_that_cannot_be_is_one_line(
    out: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "link").symlink_to("artifact")
    (tmp_path / "dangling").symlink_to("nothing")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("sys.argv", ["slimrun-export", "artifact", out, "--to", "compressed-tensors"])
    with pytest.raises(SystemExit, match="2"):
        export.main()
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_line_says_what_it_did(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = artifact.parent / "export"
    run = artifact.parent  # the run's folder is enough
    monkeypatch.setattr("sys.argv", ["slimrun-export", str(run), str(out), "--to", "compressed-tensors"])
    with pytest.raises(SystemExit, match="0"):
        export.main()
    printed = capsys.readouterr().out
    for text in ("changed", "torch_dtype", "checked", "integers equal", f"export: {out}", f"serve: vllm serve {out}"):
        assert text in printed
    with pytest.raises(SystemExit, match="2"):
        export.main()
    assert capsys.readouterr().err == f"slimrun-export: {out} is there already; remove it, or give another folder\n"


@pytest.mark.parametrize(
    "codec", [NoCompression(), NZ(), Native(tile_size=4096)], ids=lambda codec: codec.container or "none"
)
def test_bundles_of_every_codec_are_read(tmp_path: Path, codec: Codec) -> None:
    model = write(tmp_path / "artifact", tiny(), W8A8S(), codec)
    tensors = load_file(
        CompressedTensors().run(tmp_path / "artifact", tmp_path / "export").folder / "model.safetensors"
    )
    for name in model.quantized():
        assert torch.equal(tensors[f"{name}.weight"], model.module.get_submodule(name).weight), name


@pytest.mark.parametrize("target", [CompressedTensors(), MindIE(), VllmAscend(), VllmAscend310P()], ids=repr)
@pytest.mark.parametrize("tied", [True, False])
def test_quantized_embeddings_become_float_and_that_is_said(tmp_path: Path, target: Target, tied: bool) -> None:
    model = written(tmp_path / "artifact", W8A8(embeddings="int8"), "float16", tie_word_embeddings=tied)
    export = target.run(tmp_path / "artifact", tmp_path / "export")
    changes = [("model.embed_tokens", "W8_TABLE is not written there")]
    changes += [] if tied else [("lm_head", "the output layer is float there")]
    for where, why in changes:
        assert Change("W8_TABLE -> FLOAT", where, why) in export.changes
    table = model.module.model.embed_tokens
    tensors = load_file(next(export.folder.glob("*.safetensors")))
    assert torch.equal(tensors["model.embed_tokens.weight"], table(torch.arange(259)))
    assert ("lm_head.weight" in tensors) is not tied


def test_a_float_model_is_exported_as_it_is(tmp_path: Path) -> None:
    model = written(tmp_path / "artifact", NoQuantization())
    folder = CompressedTensors().run(tmp_path / "artifact", tmp_path / "export").folder
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    assert tensors.keys() == model.tensors().keys()
    assert all(torch.equal(tensors[key], tensor) for key, tensor in model.tensors().items())


def test_what_is_no_bundle_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no bundle: it holds 0 quant_model_description"):
        CompressedTensors().run(tmp_path, tmp_path / "export")
    with pytest.raises(ValueError, match="is no bundle: No such file or directory"):
        CompressedTensors().run(tmp_path / "missing", tmp_path / "new" / "folder" / "export")
    assert not list(tmp_path.iterdir())
