"""What runs share: work on the float model done once per model, data and protocol, and where finished jobs lie.

Layout, below `cache.dir`; deleting any of it is safe:

    models/                 the embedded model
    baselines/<key>.npz     float outputs of a task, or float statistics of calibration
    baselines/index.json    what each of them is, its bytes, when it was last used
    jobs/<hash>.json        the folder of the job that finished with this configuration hash, and what it took
    outlines/, digests.json  linears and size of each model seen, sha256 of each of its files
    checks/<key>.json       what was said of texts that fit a model
    resume/<hash>/          what a job that was killed goes on from, for a week; gone once the job ends well

A key is a sha256 of everything the arrays depend on: the model's content, the protocol or the texts, the device, the
library versions and our own source. Parallel jobs that need the same arrays wait for the first to compute them; a
file has its name only once it is whole. A cache that cannot be written costs time and a note on stderr, never the run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from slimrun.ops.calibration.base import Arrays, Remember
from slimrun.ops.files import replacing
from slimrun.ops.scratch import clear, lock
from slimrun.runner.folder import read_json, write_json
from slimrun.runner.identity import code_hash, digest


@dataclass(frozen=True)
class Cache:
    """A folder of shared results, bounded by `max_gb`."""

    dir: str
    max_gb: float = 10.0

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and the range."""
        if not self.dir.strip():
            raise ValueError("dir= names no folder; allowed: one that can be written (SLIMRUN_CACHE names it too)")
        if self.max_gb < 0:
            raise ValueError(f"max_gb={self.max_gb} is out of range; allowed: 0 or more")

    @property
    def path(self) -> Path:
        """The folder, `~` expanded; ValueError when this user has no home."""
        try:
            return Path(self.dir).expanduser()
        except RuntimeError as error:
            raise ValueError(f"cache.dir={self.dir}: this user has no home; choose another: cache.dir=DIR") from error

    def has(self, kind: str, *depends_on: Any) -> bool:
        """Whether the arrays of a piece of work are stored."""
        return self._file(kind, *depends_on).is_file()

    def arrays(self, what: Mapping[str, str], *depends_on: Any) -> Remember:
        """The arrays of one piece of work: stored ones if nothing it depends on has changed, else computed and stored.

        `what` says in the index what they are, for people. Those of a part are read from its file each time they are
        asked for, so that many parts need not fit in memory; the file stays open, so it may be dropped meanwhile.
        """

        def remember(compute: Callable[[], Arrays], part: str = "") -> Arrays:
            file = self._file(what["kind"], *depends_on, *([part] if part else []))
            with self._alone(file):
                arrays = _load(file, whole=not part)
                if arrays is None:
                    arrays = compute()
                    self._keep(file, arrays)
                    arrays = (_load(file, whole=False) if part else None) or arrays
            self._note_use(file, what)
            return arrays

        return remember

    def notes(self, find: Callable[[], list[str]], *depends_on: Any) -> list[str]:
        """What a check said that found nothing wrong: stored if nothing it depends on has changed, else found anew."""
        file = self.path / "checks" / f"{digest(code_hash(), *depends_on)}.json"
        stored = read_json(file)
        if stored is not None and isinstance(stored.get("notes"), list):
            return list(map(str, stored["notes"]))
        notes = find()
        with suppress(OSError):  # a cache that cannot be written only costs time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"notes": notes})
        return notes

    def finished(self, config_hash: str) -> Path | None:
        """The folder where a job with this hash is said to have finished."""
        content = read_json(self.path / "jobs" / f"{config_hash}.json") or {}
        folder = content.get("folder")
        return Path(folder) if isinstance(folder, str) else None

    def note_finished(self, config_hash: str, folder: Path, facts: Mapping[str, object]) -> None:
        """Say where a job has finished, with what plans of jobs like it want to know."""
        try:
            (self.path / "jobs").mkdir(parents=True, exist_ok=True)
            write_json(self.path / "jobs" / f"{config_hash}.json", {"folder": str(folder.resolve()), **facts})
        except OSError as error:
            self._say(error)

    def finished_jobs(self, newest: int = 1000) -> list[dict[str, Any]]:
        """What `note_finished` left of the last jobs, the oldest first."""
        try:
            files = sorted((self.path / "jobs").glob("*.json"), key=lambda file: file.stat().st_mtime)
        except OSError:  # another process has removed one
            return []
        records = [read_json(file) or {} for file in files[-newest:]]
        return [record for record in records if isinstance(record.get("folder"), str)]

    def clear(self) -> None:
        """Remove what processes that were killed left half written."""
        for name in ("", "baselines", "checks", "jobs", "models", "outlines"):
            clear(self.path / name)

    def _file(self, kind: str, *depends_on: Any) -> Path:
        return self.path / "baselines" / f"{digest(kind, code_hash(), *depends_on)}.npz"

    @contextmanager
    def _alone(self, file: Path) -> Iterator[None]:
        """Inside the block no other process makes this file, as far as the folder can be written."""
        with ExitStack() as stack:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock(file.with_suffix(".lock")))
            except OSError as error:
                self._say(error)
            yield

    def _keep(self, file: Path, arrays: Arrays) -> None:
        try:
            with replacing(file, 0o600) as scratch, scratch.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
        except OSError as error:
            self._say(error)

    def _note_use(self, file: Path, what: Mapping[str, str]) -> None:
        """Write the index anew, and drop the least recently used files beyond the bound."""
        folder = file.parent
        try:
            with lock(folder / "index.lock"):
                clear(folder)
                index = _entries(folder / "index.json")
                index[file.name] = {**what, "used": datetime.now(UTC).isoformat(timespec="microseconds")}
                there = {item.name: item.stat().st_size for item in folder.glob("*.npz")}
                unknown = {"what": "unknown", "used": ""}
                index = {name: {**index.get(name, unknown), "bytes": size} for name, size in there.items()}
                total = sum(there.values())
                for name in sorted(index, key=lambda name: str(index[name]["used"])):
                    if total <= self.max_gb * 1e9:
                        break
                    if name != file.name:
                        total -= there[name]
                        (folder / name).unlink(missing_ok=True)
                        del index[name]
                write_json(folder / "index.json", index)
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        _say_once(f"note: cache.dir={self.dir} cannot be used ({error.strerror or error}); the run goes on without it")


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def _entries(file: Path) -> dict[str, dict[str, Any]]:
    """The index, as far as it is one."""
    index = read_json(file) or {}
    return {name: entry for name, entry in index.items() if isinstance(entry, dict) and "used" in entry}


def _load(file: Path, *, whole: bool) -> Arrays | None:
    """The stored arrays, all read once; None when there are none or one is damaged (they are then computed anew).

    `whole` keeps them in memory; else each is read again from the open file.
    """
    try:
        stored: Any = np.load(file, allow_pickle=False)
        arrays: dict[str, Any] = {}
        for name, array in stored.items():
            if not isinstance(array, np.ndarray):
                return None
            arrays[name] = array if whole else None
        if not arrays:
            return None
        if whole:
            stored.close()
    except Exception:  # a damaged zip or array raises whatever its reader trips over
        return None
    return arrays if whole else cast(Arrays, stored)
