"""Damaged, swapped and hostile bundles: a ValueError that names the file, or the model that was written."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from slimrun.msmodelslim import restore
from slimrun.ops import _native, bundle, compress, load_bundle
from slimrun.ops.bundle import writer
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native
from slimrun.ops.compress.none import NoCompression
from slimrun.ops.framework.pytorch import PyTorch, TorchModel
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.runner import inspect

from .conftest import TEXTS, tiny
from .fuzz.bundle import Target, is_good, make

MANIFEST = "slimrun.json"
NAME = "model.layers.0.self_attn.q_proj"


def saved(folder: Path, model: TorchModel, codec: Native | NoCompression) -> Path:
    tensors = model.tensors()
    coded = Compressor(codec).run({name: tensors[f"{name}.weight"].numpy() for name in model.quantized()})
    bundle.write(folder, tensors, coded, "W8A8S", codec, model.save_description, float_model=model.shapes)
    return folder


@pytest.fixture(scope="module")
def models() -> tuple[TorchModel, TorchModel]:
    """Two that compute differently."""
    both = tiny(), tiny(intermediate_size=96)
    for model in both:
        PyTorch().calibrator(model, W8A8S(), TEXTS, 64).run()
    return both


@pytest.fixture
def artifact(tmp_path: Path, models: tuple[TorchModel, TorchModel]) -> Path:
    return saved(tmp_path / "artifact", models[0], Native(tile_size=4096))


def opened(file: Path) -> Path:
    file.chmod(0o600)
    return file


def weight_file(folder: Path) -> Path:
    return opened(next(folder.glob("*.safetensors")))


def edit(file: Path, **new: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | new))


@pytest.mark.parametrize("codec", [Native(), NoCompression()], ids=["coded", "int8"])
def test_one_bit_of_any_tensor_is_noticed(
    tmp_path: Path, models: tuple[TorchModel, TorchModel], codec: Native | NoCompression
) -> None:
    folder = saved(tmp_path / "artifact", models[0], codec)
    file = weight_file(folder)
    raw = file.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:start])
    header.pop("__metadata__")
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        damaged = bytearray(raw)
        damaged[start + (first + last - 1) // 2] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{file.name}: {name} is not what was written"):
            bundle.read(folder)


def test_one_bit_of_any_line_of_the_manifest_is_noticed(artifact: Path) -> None:
    """A line says what one tensor or file has to be, so that one is named, or the manifest."""
    manifest = opened(artifact / MANIFEST)
    whole = manifest.read_bytes()
    begin = 0
    for number, line in enumerate(whole.splitlines(keepends=True)):
        damaged = bytearray(whole)
        damaged[begin + number % len(line)] ^= 1 << number % 7
        begin += len(line)
        manifest.write_bytes(damaged)
        with pytest.raises(ValueError, match=str(artifact)) as caught:
            bundle.read(artifact)
        named = line.decode().split('"')[1]
        assert named in str(caught.value) or MANIFEST in str(caught.value), (number, line)


def test_every_other_file_is_held_against_the_manifest(artifact: Path) -> None:
    for file in sorted(artifact.iterdir()):
        whole = opened(file).read_bytes()
        for damaged in (whole[:-1], whole.replace(b"1", b"2", 1) if b"1" in whole else whole + b" ", None):
            if damaged is None:
                file.unlink()
            else:
                file.write_bytes(damaged)
            if file.name == MANIFEST and damaged in (None, whole[:-1]):
                load_bundle(artifact)  # an older bundle; a line's end means nothing
            else:
                with pytest.raises(ValueError, match=f"{artifact}"):
                    load_bundle(artifact)
        file.write_bytes(whole)
    load_bundle(artifact)


def test_a_file_changed_on_purpose_is_told_the_way_out(artifact: Path, models: tuple[TorchModel, TorchModel]) -> None:
    edit(artifact / "generation_config.json", max_length=99)
    with pytest.raises(ValueError, match=r"generation_config.json: is not what was written.*or delete slimrun.json"):
        load_bundle(artifact)
    (artifact / MANIFEST).unlink()
    assert load_bundle(artifact).logits_checksum() == models[0].logits_checksum()


def test_random_damage(tmp_path: Path) -> None:
    target = Target(tmp_path / "pristine", tmp_path / "artifact", make(tmp_path / "pristine", "safetensors"))
    for number in range(60):
        outcome = target.attempt(seed=7, number=number)
        assert is_good(outcome), (number, outcome)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "../../evil.Config"}}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "/tmp/evil.Model"}}),
        ("config.json", {"attn_implementation": "owner/kernel"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["../evil.Tokenizer", None]}}),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}),
        ("tokenizer_config.json", {"tokenizer_file": "../tokenizer.json"}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.../../x.json"]}),
        ("quant_model_description_w8a8sc.json", {"model_quant_type": "/../../../x"}),
    ],
)
def test_nothing_leads_out_of_the_folder(artifact: Path, file: str, change: dict[str, Any]) -> None:
    (artifact / MANIFEST).unlink()
    edit(artifact / file, **change)
    with pytest.raises(ValueError, match=f"{artifact / file}: {next(iter(change))}"):
        load_bundle(artifact)


def bomb(rows: int, columns: int) -> bytes:
    """A container of one constant tile, said of every tile of a matrix [rows, columns]; its checksums are right."""
    seedling = compress.encode(np.full((1, 1 << 20), 3, np.int8), tile_size=1 << 20)
    info = bytearray(seedling[:56])
    model_bytes = struct.unpack_from("<Q", info, 24)[0] - 12
    model, entry, crc = (seedling[56:][slice(*ends)] for ends in (
        (0, model_bytes), (model_bytes, model_bytes + 8), (model_bytes + 8, model_bytes + 12)
    ))  # fmt: skip
    tiles = rows * columns >> 20
    index = model + entry * tiles + crc * tiles
    struct.pack_into("<QQQQQ", info, 16, rows * columns, len(index), 0, rows, columns)
    checksum = _native.crc32c(np.frombuffer(bytes(info[:12]) + bytes(info[16:]) + index, np.uint8))
    struct.pack_into("<I", info, 12, checksum)
    return bytes(info) + index


def test_a_small_file_that_claims_a_large_matrix_allocates_nothing(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = bomb(64, 1 << 28)  # 16 GiB in 0.2 MB
    (artifact / MANIFEST).unlink()
    sections = dict(zip(("info", "index", "weight"), compress.split(packed)))
    change = {f"{NAME}.{part}": torch.from_numpy(np.array(section)) for part, section in sections.items()}
    save_file(load_file(weight_file(artifact)) | change, weight_file(artifact))
    (tmp_path / "bomb").write_bytes(packed)

    def small(shape: tuple[int, ...]) -> Any:
        assert np.prod(shape) <= 1 << 26
        return np.empty(shape, np.int8)

    monkeypatch.setattr("slimrun.ops.compress.base.empty", small)
    with pytest.raises(ValueError, match=rf"{NAME}: has the shape \(64, 268435456\), the model's has \(64, 64\)"):
        load_bundle(artifact)
    for read in (bundle.read, restore.read_safetensors):
        with pytest.raises(ValueError, match=f"{NAME}: claims an array of shape"):
            read(artifact)
    for path in (artifact, tmp_path / "bomb"):
        with pytest.raises(ValueError, match="claims an array of shape"):
            inspect.show(path, None)
    with pytest.raises(ValueError, match="claims 17179869184 bytes, more than max_bytes = 65536"):
        compress.decode(packed, max_bytes=1 << 16)


def test_a_config_that_asks_for_more_than_the_file_holds_allocates_nothing(artifact: Path) -> None:
    (artifact / MANIFEST).unlink()
    whole = (artifact / "config.json").read_text()
    for key, value in {"hidden_size": 40, "vocab_size": 50, "head_dim": 36, "num_hidden_layers": 40}.items():
        edit(artifact / "config.json", **{key: 1 << value})
        with pytest.raises(ValueError, match=f"{artifact}"):
            load_bundle(artifact)
        (artifact / "config.json").write_text(whole)


@pytest.fixture(params=["exchange", "rename"])
def replacing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to put a folder in the place of another; the second leaves it away for a moment."""
    if request.param == "rename":
        monkeypatch.setattr(writer, "_exchange", lambda first, second: False)
    return str(request.param)


def in_turns(folder: Path, models: tuple[TorchModel, TorchModel], done: threading.Event) -> Iterator[None]:
    turn = 0
    while not done.is_set():
        turn += 1
        saved(folder, models[turn % 2], Native(tile_size=4096))
        yield


def test_a_bundle_replaced_while_it_is_read_is_one_or_the_other(
    artifact: Path, models: tuple[TorchModel, TorchModel], replacing: str
) -> None:
    known = {model.logits_checksum() for model in models}
    done = threading.Event()
    writer_thread = threading.Thread(target=lambda: [None for _ in in_turns(artifact, models, done)])
    writer_thread.start()
    try:
        checksums = {load_bundle(artifact).logits_checksum() for _ in range(5)}
    finally:
        done.set()
        writer_thread.join()
    assert checksums <= known
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]


def test_files_of_two_bundles_are_never_taken_for_one(
    artifact: Path, tmp_path: Path, models: tuple[TorchModel, TorchModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = saved(tmp_path / "other", models[1], Native(tile_size=4096))
    from slimrun.ops.framework.pytorch import restoring

    look: Callable[..., Any] = restoring.open_tokenizer
    monkeypatch.setattr(writer, "GRACE_SECONDS", 0.0)  # a writer that does not wait for this reader
    turns = iter([True])

    def replaced_meanwhile(folder: Path, *arguments: Any) -> Any:
        if next(turns, False):
            writer._replace(other, artifact)
        return look(folder, *arguments)

    monkeypatch.setattr(restoring, "open_tokenizer", replaced_meanwhile)
    assert load_bundle(artifact).logits_checksum() == models[1].logits_checksum()
