"""What runs share: work on the float model done once per model, data and protocol, and where finished jobs lie.

Layout, below `cache.dir`; deleting any of it is safe:

    models/                 the embedded model
    baselines/<key>.npz     float outputs of a task, or float statistics of calibration
    baselines/index.json    what each of them is, its bytes, when it was last used
    jobs/<hash>.json        the folder of the job that finished with this configuration hash, and what it took
    outlines/, digests.json  linears and size of each model seen, sha256 of each of its files
    checks/<key>.json       what was said of texts that fit a model

A key is a sha256 of everything the arrays depend on: the model's content, the protocol or the texts, the device, the
library versions and our own source. Parallel jobs that need the same arrays wait for the first to compute them; a
file has its name only once it is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock

from ops.files import replacing
from ops.framework.base import Arrays, Remember
from runner.result import read_json, write_json

SHAPES_RESULTS = ("torch", "transformers", "numpy", "sacrebleu", "rouge-score")


@dataclass(frozen=True)
class Cache:
    """A folder of shared results, bounded by `max_gb`."""

    dir: str
    max_gb: float = 10.0

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and the range."""
        if self.max_gb < 0:
            raise ValueError(f"max_gb={self.max_gb} is out of range; allowed: 0 or more")

    @property
    def path(self) -> Path:
        """The folder, `~` expanded."""
        return Path(self.dir).expanduser()

    def has(self, kind: str, *depends_on: Any) -> bool:
        """Whether the arrays of a piece of work are stored."""
        return self._file(kind, *depends_on).is_file()

    def arrays(self, what: Mapping[str, str], *depends_on: Any) -> Remember:
        """The arrays of one piece of work: stored ones if nothing it depends on has changed, else computed and stored.

        `what` says in the index what they are, for people. Those of a part are read from its file each time they are
        asked for, so that many parts need not fit in memory.
        """

        def remember(compute: Callable[[], Arrays], part: str = "") -> Arrays:
            file = self._file(what["kind"], *depends_on, *([part] if part else []))
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):
                stored = _load(file)
                if stored is None:
                    stored = compute()
                    _store(file, stored)
                if part:
                    stored = np.load(file, allow_pickle=False)
            self._note_use(file, what)
            return stored

        return remember

    def notes(self, find: Callable[[], list[str]], *depends_on: Any) -> list[str]:
        """What a check said that found nothing wrong: stored if nothing it depends on has changed, else found anew."""
        file = self.path / "checks" / f"{digest(code_hash(), *depends_on)}.json"
        stored = read_json(file)
        if stored is not None and isinstance(stored.get("notes"), list):
            return list(map(str, stored["notes"]))
        found = find()
        with suppress(OSError):  # a cache that cannot be written only costs time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"notes": found})
        return found

    def finished(self, config_hash: str) -> Path | None:
        """The folder where a job with this hash is said to have finished."""
        content = read_json(self.path / "jobs" / f"{config_hash}.json")
        return Path(content["folder"]) if content else None

    def note_finished(self, config_hash: str, folder: Path, facts: Mapping[str, object]) -> None:
        """Say where a job has finished, with what plans of jobs like it want to know."""
        (self.path / "jobs").mkdir(parents=True, exist_ok=True)
        write_json(self.path / "jobs" / f"{config_hash}.json", {"folder": str(folder.resolve()), **facts})

    def finished_jobs(self, newest: int = 1000) -> list[dict[str, Any]]:
        """What `note_finished` left of the last jobs, the oldest first."""
        files = sorted((self.path / "jobs").glob("*.json"), key=lambda file: file.stat().st_mtime)
        return [content for file in files[-newest:] if (content := read_json(file))]

    def _file(self, kind: str, *depends_on: Any) -> Path:
        return self.path / "baselines" / f"{digest(kind, code_hash(), *depends_on)}.npz"

    def _note_use(self, file: Path, what: Mapping[str, str]) -> None:
        """Write the index anew, and drop the least recently used files beyond the bound."""
        with FileLock(file.parent / "index.lock"):
            index = read_json(file.parent / "index.json") or {}
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            index[file.name] = {**what, "used": now}
            there = {item.name: item.stat() for item in file.parent.glob("*.npz")}
            unknown = {"what": "unknown", "used": ""}
            index = {name: {**index.get(name, unknown), "bytes": stat.st_size} for name, stat in there.items()}
            total = sum(stat.st_size for stat in there.values())
            for name in sorted(index, key=lambda name: str(index[name]["used"])):
                if total <= self.max_gb * 1e9:
                    break
                if name != file.name:
                    total -= there[name].st_size
                    (file.parent / name).unlink()
                    del index[name]
            write_json(file.parent / "index.json", index)


def digest(*parts: Any) -> str:
    """sha256 of anything json can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@cache
def code_hash() -> str:
    """Hash of everything of ours and of the libraries above that can change a result."""
    root = Path(__file__).parent.parent
    total = hashlib.sha256(json.dumps([version(name) for name in SHAPES_RESULTS]).encode())
    files = [root / "runner" / "experiment.py", root / "runner" / "result.py"]
    files += [file for room in ("ops", "evaluation") for file in sorted((root / room).rglob("*"))]
    for file in files:
        if file.suffix in {".py", ".cpp", ".hpp"}:
            total.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


def _load(file: Path) -> Arrays | None:
    """The stored arrays; None when there are none or the file is damaged (it is then computed anew)."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, BadZipFile, EOFError):
        return None


def _store(file: Path, arrays: Arrays) -> None:
    with replacing(file, 0o600) as scratch, scratch.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
