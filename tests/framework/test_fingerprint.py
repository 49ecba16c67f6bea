"""A model's fingerprint follows whatever loading may read, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from slimrun.ops.framework.pytorch import PyTorch
from slimrun.ops.model.fingerprint import folder_hash
from slimrun.ops.model.outline import description_key
from slimrun.ops.model.pretrained import Pretrained

READ = [
    "model.safetensors", "pytorch_model.bin", "model.ckpt", "config.json", "generation_config.json", "merges.txt",
    "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "qwen.tiktoken", "tekken.json", "bpe.codes",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/tool.jinja", "modeling_mine.py",
    "package/layers.py", "package/table.npy", "special", "adapter_config.json",
]  # fmt: skip
IGNORED = [
    "README.md", "LICENSE.txt", ".gitattributes", ".git/HEAD", ".cache/x.json", "__pycache__/modeling_mine.pyc",
    "loss.png", "flax_model.msgpack", "tf_model.h5", "model.onnx", "weights.gguf", "optimizer.pt", "training_args.bin",
    "checkpoint-10/model.safetensors", "outputs/2026-01-01/results.json", "mlflow.db", "mlflow.db-wal", "nohup.out",
]  # fmt: skip


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", READ)
def test_what_loading_may_read_changes_it_whatever_its_times_say(tmp_path: Path, name: str) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    first_of_all = put(folder, "config.json", b"{ }")
    path = put(folder, name, b"{1}")
    for file in (first_of_all, path):
        os.utime(file, (1, 1))
    before = folder_hash(folder, cache)
    assert folder_hash(folder, cache, read=False) == before
    path.write_bytes(b"{2}")  # in place, of the same size
    os.utime(path, (1, 1))
    assert folder_hash(folder, cache, read=False) is None
    changed = folder_hash(folder, cache)
    path.unlink()
    put(folder, name, b"{1}")  # another file of the same name
    os.utime(path, (1, 1))
    assert changed != before == folder_hash(folder, cache)
    path.rename(path.with_name("elsewhere.json"))
    assert folder_hash(folder, cache) != before


def test_what_nothing_reads_does_not_change_it(tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    put(folder, "config.json", b"{}")
    before = folder_hash(folder, cache)
    for name in IGNORED:
        put(folder, name, b"x")
    put(folder, "run/.hydra/config.yaml", b"x")  # a run of ours beside the weights
    put(folder, "run/results.json", b"{}")
    (folder / "again").symlink_to(folder)
    assert folder_hash(folder, cache, read=False) == before


def test_without_its_own_code_only_named_files_below_count(tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    put(folder, "model.safetensors.index.json", json.dumps({"weight_map": {"w": "parts/1.safetensors"}}).encode())
    put(folder, "parts/1.safetensors", b"1")
    put(folder, "data/corpus.txt", b"1")
    hashes = [folder_hash(folder, cache, code=False)]
    for name in ("data/corpus.txt", "parts/1.safetensors", "additional_chat_templates/tool.jinja"):
        put(folder, name, b"2")
        hashes.append(folder_hash(folder, cache, code=False))
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("content", [b"", b"[]", b'{"x": 3}', b"\xff"])
def test_damaged_digests_are_computed_anew(tmp_path: Path, content: bytes) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    put(folder, "config.json", b"{}")
    before = folder_hash(folder, cache)
    (cache / "digests.json").write_bytes(content)
    assert folder_hash(folder, cache) == before
    assert folder_hash(folder, cache, read=False) == before


def test_what_is_known_without_weights_follows_all_but_the_weights(tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    model = Pretrained("mine", str(folder)).open(cache)
    keys = set()
    for name in ("config.json", "merges.txt", "modeling_mine.py", "chat_template.jinja"):
        put(folder, name, b"{}")
        keys.add(description_key(model, folder))
    assert len(keys) == 4
    put(folder, "model.safetensors", b"{}")
    assert description_key(model, folder) in keys


def test_code_in_another_repository_counts_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    folder, fingerprints = tmp_path / "model", []
    named = {"auto_map": {"AutoModelForCausalLM": "owner/code--modeling.Mine"}, "model_type": "llama"}
    put(folder, "config.json", json.dumps(named).encode())
    for commit in ("a" * 40, "b" * 40):
        put(hub, f"models--owner--code/snapshots/{commit}/modeling.py", b"")
        put(hub, "models--owner--code/refs/main", commit.encode())
        for trusted in (True, False):
            model = Pretrained("mine", str(folder), trust_remote_code=trusted)
            fingerprints.append(PyTorch().fingerprint(model.open(tmp_path / "cache")))
    assert fingerprints[0] != fingerprints[2]
    assert fingerprints[1] == fingerprints[3]
    assert (
        PyTorch().fingerprint(Pretrained("mine", str(folder), trust_remote_code=True).open(tmp_path), read=False)
        is None
    )
