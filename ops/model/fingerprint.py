"""What a model's files are: hashes of everything in its folder that loading it may read.

Digests of files are kept in the cache (`digests.json`, by path, size, inode and both times), because reading
gigabytes takes seconds. Deleting it is safe.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock

from slimrun.ops.files import replacing

DIGESTS = "digests.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.ckpt", "*.pt", "*.pth")
# what nothing here reads: texts and pictures for people, weights of other frameworks, a trainer's state, our own files.
# Everything else counts: the code that a model brings may read whatever it finds.
NEVER_READ = (
    ".*", "*.md", "LICENSE*", "NOTICE*", "README*", "USE_POLICY*",
    "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.pdf", "*.ipynb",
    "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.gguf", "*.ot", "*.tflite", "*.mlmodel", "consolidated.*.pth",
    "optimizer.*", "scheduler.pt", "rng_state*.pth", "trainer_state.json", "training_args.bin", "events.out.*",
    "*.log", "*.out", "*.lock", "*.pyc", "*.db", "*.db-*",
)  # fmt: skip
NEVER_ENTERED = (".*", "__pycache__", "checkpoint-*", "runs", "wandb", "mlruns", "mlartifacts", "outputs", "multirun")
RUN_MARKS = (".hydra", "multirun.yaml")  # in an output folder of ours that was put beside the weights
TEMPLATES = "additional_chat_templates"  # transformers' name
TICK = 0.02  # seconds within which a file system may give two changes one time


def folder_hash(path: Path, cache: Path, *, read: bool = True, code: bool = True) -> str | None:
    """sha256 over names and contents of all files of a model folder that loading may read.

    With `code` the model's own code runs, which may read files in folders below. A file that is the one of an earlier
    call (size, inode, times of content and of the entry) is not read again. With `read=False` nothing is: None when a
    file is not known yet.
    """
    return _hash_of(path, loaded_files(path, code), cache, read)


def description_hash(path: Path, cache: Path, *, code: bool = True) -> str:
    """`folder_hash` of all but the weights: config, code and tokenizer."""
    files = [file for file in loaded_files(path, code) if not any(fnmatch(file.name, form) for form in WEIGHTS)]
    return str(_hash_of(path, files, cache, read=True))


def loaded_files(path: Path, code: bool) -> list[Path]:
    """The files of a model folder that loading may read, in a fixed order."""
    if code:
        return sorted(_below(path, set()))
    beside = [file for file in path.iterdir() if file.is_file() and not _matches(file, NEVER_READ)]
    shards = {path / name for index in path.glob("*.index.json") for name in _shards(index) if "/" in name}
    return sorted({*beside, *(path / TEMPLATES).glob("*.jinja"), *(shard for shard in shards if shard.is_file())})


def foreign_code(path: Path) -> list[tuple[str, str]]:
    """(hub id, file) of Python code in other repositories that config.json or the tokenizer's names."""
    files = set()
    for name in ("config.json", "tokenizer_config.json"):
        named = read_object(path / name).get("auto_map") or {}
        for item in _strings(named):
            repository, mark, target = item.partition("--")
            if mark:
                files.add((repository, f"{target.partition('.')[0]}.py"))
    return sorted(files)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one when there is none or it is damaged."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def store_object(file: Path, content: dict[str, Any]) -> None:
    """Keep a JSON object in the cache; a cache that cannot be written only costs time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, 0o644) as scratch:
            scratch.write_text(json.dumps(content), encoding="utf-8")
    except OSError:
        pass


def _hash_of(path: Path, files: list[Path], cache: Path, read: bool) -> str | None:
    known = read_object(cache / DIGESTS)
    new: dict[str, list[Any]] = {}
    total = hashlib.sha256()
    for file in files:
        name, state = str(file.resolve()), _state(file)
        stored = known.get(name)
        if isinstance(stored, list) and stored[:-1] == state:
            digest = str(stored[-1])
        elif read:
            digest = _digest(file, state)
            new[name] = [*state, digest]
        else:
            return None
        total.update(f"{file.relative_to(path).as_posix()}\0{digest}\n".encode())
    if new:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / "digests.lock"):
                store_object(cache / DIGESTS, read_object(cache / DIGESTS) | new)
        except OSError:
            pass  # as in store_object
    return total.hexdigest()


def _state(file: Path) -> list[int]:
    """What changes when the file does, even where its time of change was put back (cp -p, tar, container layers)."""
    entry = file.stat()
    return [entry.st_size, entry.st_ino, entry.st_mtime_ns, entry.st_ctime_ns]


def _digest(file: Path, state: list[int]) -> str:
    # a file written this very moment may change once more without another time
    time.sleep(min(TICK, max(0.0, TICK - (time.time_ns() - state[-1]) / 1e9)))
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """All files at any depth but those that are never read; links are followed, each folder entered once."""
    state = folder.stat()
    if (state.st_dev, state.st_ino) in seen:
        return
    seen.add((state.st_dev, state.st_ino))
    for item in folder.iterdir():
        if item.is_dir():
            if not _matches(item, NEVER_ENTERED) and not any((item / mark).exists() for mark in RUN_MARKS):
                yield from _below(item, seen)
        elif item.is_file() and not _matches(item, NEVER_READ):
            yield item


def _matches(path: Path, forms: tuple[str, ...]) -> bool:
    return any(fnmatch(path.name, form) for form in forms)


def _shards(index: Path) -> set[str]:
    named = read_object(index).get("weight_map")
    return {name for name in named.values() if isinstance(name, str)} if isinstance(named, dict) else set()


def _strings(value: Any) -> Iterator[str]:
    """All strings in nested lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
