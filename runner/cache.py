"""What runs share: the outputs of the float model on a task, computed once per model and protocol.

Layout, below `cache.dir`: `models/` holds the embedded model; `baselines/<key>.npz` the float outputs of one task,
where the key is a sha256 of the model's content, the task's protocol, the device, the library versions and our own
source; `jobs/<hash>.json` where the job with this configuration hash finished, and what it took. Deleting any of it
is safe.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock

from evaluation.base import Outputs
from ops.files import replacing
from runner.result import read_json, write_json

JOBS = "jobs"
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

    def has(self, key: str) -> bool:
        """Whether outputs are stored under the key."""
        return (self.path / "baselines" / f"{key}.npz").is_file()

    def finished(self, config_hash: str) -> Path | None:
        """The folder where a job with this hash is said to have finished."""
        content = read_json(self.path / JOBS / f"{config_hash}.json")
        return Path(content["folder"]) if content else None

    def note_finished(self, config_hash: str, folder: Path, facts: Mapping[str, object]) -> None:
        """Say where a job has finished, with what plans of jobs like it want to know."""
        (self.path / JOBS).mkdir(parents=True, exist_ok=True)
        write_json(self.path / JOBS / f"{config_hash}.json", {"folder": str(folder.resolve()), **facts})

    def finished_jobs(self, newest: int = 1000) -> list[dict[str, Any]]:
        """What `note_finished` left of the last jobs, the oldest first."""
        files = sorted((self.path / JOBS).glob("*.json"), key=lambda file: file.stat().st_mtime)
        return [content for file in files[-newest:] if (content := read_json(file))]

    def outputs(self, key: str, compute: Callable[[], Outputs]) -> Outputs:
        """The outputs stored under the key, else computed and stored; parallel callers wait for the first."""
        folder = self.path / "baselines"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{key}.npz"
        with FileLock(folder / f"{key}.lock"):
            stored = _load(file)
            if stored is not None:
                os.utime(file)
                return stored
            computed = compute()
            _store(file, computed)
        self._trim(folder, keep=file)
        return computed

    def _trim(self, folder: Path, keep: Path) -> None:
        """Drop the least recently used files beyond the bound."""
        files = sorted(folder.glob("*.npz"), key=lambda file: file.stat().st_mtime)
        total = sum(file.stat().st_size for file in files)
        for file in files:
            if total <= self.max_gb * 1e9:
                return
            if file != keep:
                total -= file.stat().st_size
                file.unlink(missing_ok=True)


def digest(*parts: Any) -> str:
    """sha256 of anything json can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@cache
def code_hash() -> str:
    """Hash of everything of ours and of the libraries below that can change a result."""
    root = Path(__file__).parent.parent
    total = hashlib.sha256(json.dumps([version(name) for name in SHAPES_RESULTS]).encode())
    for room in ("ops", "evaluation"):
        for file in sorted((root / room).rglob("*")):
            if file.suffix in {".py", ".cpp", ".hpp"}:
                total.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


def _load(file: Path) -> Outputs | None:
    """The stored arrays; None when there are none or the file is damaged (it is then computed anew)."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, BadZipFile, EOFError):
        return None


def _store(file: Path, outputs: Outputs) -> None:
    with replacing(file, 0o600) as scratch, scratch.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **outputs)
