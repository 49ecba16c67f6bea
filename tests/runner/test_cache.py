"""Work that jobs share: done once, bounded, and never read half written."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from ops.framework.base import Arrays
from runner.cache import Cache

WHAT = {"kind": "test", "model": "none"}
MEGABYTE = 1 << 17  # float64


def compute(calls: Path, value: float = 1.0) -> Arrays:
    with calls.open("a") as stream:
        stream.write("call\n")
    return {"x": np.full(MEGABYTE, value)}


def number_of(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def index(folder: Path) -> dict[str, dict[str, object]]:
    return dict(json.loads((folder / "baselines" / "index.json").read_text()))


def test_parallel_jobs_compute_once(tmp_path: Path) -> None:
    calls = tmp_path / "calls"

    def job() -> None:
        found = Cache(str(tmp_path)).arrays(WHAT, "key")(lambda: compute(calls))
        assert np.array_equal(found["x"], np.ones(MEGABYTE))

    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=job) for _ in range(4)]
    for process in jobs:
        process.start()
    for process in jobs:
        process.join(60)
    assert [process.exitcode for process in jobs] == [0] * 4
    assert number_of(calls) == 1


def test_what_it_depends_on_makes_the_key(tmp_path: Path) -> None:
    cache, calls = Cache(str(tmp_path)), tmp_path / "calls"
    for depends_on in (("a", ["text"]), ("a", ["text"]), ("a", ["other"]), ("b", ["text"])):
        cache.arrays(WHAT, *depends_on)(lambda: compute(calls))
    assert number_of(calls) == 3
    assert [entry["kind"] for entry in index(tmp_path).values()] == ["test"] * 3


def test_the_least_recently_used_is_dropped(tmp_path: Path) -> None:
    cache, calls = Cache(str(tmp_path), max_gb=0.0025), tmp_path / "calls"
    for key in "abac":  # b is the oldest when c needs its place
        cache.arrays({**WHAT, "task": key}, key)(lambda: compute(calls))
    assert sorted(str(entry["task"]) for entry in index(tmp_path).values()) == ["a", "c"]
    assert len(list((tmp_path / "baselines").glob("*.npz"))) == 2
    assert all(entry["bytes"] > 8 * MEGABYTE for entry in index(tmp_path).values())  # type: ignore[operator]


@pytest.mark.parametrize("damage", ["baseline", "index"])
def test_damaged_files_are_made_anew(tmp_path: Path, damage: str) -> None:
    cache, calls = Cache(str(tmp_path)), tmp_path / "calls"
    first = cache.arrays(WHAT, "key")(lambda: compute(calls))
    [file] = (tmp_path / "baselines").glob("*.npz")
    if damage == "index":
        file = file.parent / "index.json"
    file.write_bytes(file.read_bytes()[:100])
    again = cache.arrays(WHAT, "key")(lambda: compute(calls))
    assert np.array_equal(first["x"], again["x"])
    assert number_of(calls) == (2 if damage == "baseline" else 1)
    assert len(index(tmp_path)) == 1


def test_where_a_job_finished(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path))
    assert cache.finished("hash") is None
    cache.note_finished("hash", tmp_path / "job", {"seconds": 2.5})
    assert cache.finished("hash") == tmp_path / "job"
    assert [job["seconds"] for job in cache.finished_jobs()] == [2.5]
