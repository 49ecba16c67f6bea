"""Work that jobs share: done once, bounded, and never read half written."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from slimrun.ops.calibration.base import Arrays
from slimrun.runner.cache import Cache
from slimrun.runner.estimate import recorded

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
        arrays = Cache(str(tmp_path)).arrays(WHAT, "key")(lambda: compute(calls))
        assert np.array_equal(arrays["x"], np.ones(MEGABYTE))

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


def array_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        b"PK\x05\x06" + bytes(18),  # an archive of nothing
        array_file(),
        "half",
        "flipped",
        "pickled",
    ],
)
@pytest.mark.parametrize("part", ["", "part 0"])
def test_a_damaged_baseline_is_made_anew(tmp_path: Path, content: bytes | str, part: str) -> None:
    cache, calls = Cache(str(tmp_path)), tmp_path / "calls"
    cache.arrays(WHAT, "key")(lambda: compute(calls), part)
    [file] = (tmp_path / "baselines").glob("*.npz")
    whole = file.read_bytes()
    if content == "pickled":
        np.savez(file, allow_pickle=True, x=np.array([{}], dtype=object))
    elif content == "flipped":
        file.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    else:
        file.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    again = cache.arrays(WHAT, "key")(lambda: compute(calls), part)
    assert np.array_equal(again["x"], np.ones(MEGABYTE))
    assert number_of(calls) == 2
    assert file.read_bytes() == whole


@pytest.mark.parametrize("content", ["{", "[1, 2]", "3", '{"a.npz": [1]}', '{"KEY": "text"}', '{"KEY": {"kind": 1}}'])
def test_a_damaged_index_is_made_anew(tmp_path: Path, content: str) -> None:
    cache, calls = Cache(str(tmp_path)), tmp_path / "calls"
    for key in ("one", "other"):
        cache.arrays(WHAT, key)(lambda: compute(calls))
    name = next((tmp_path / "baselines").glob("*.npz")).name
    (tmp_path / "baselines" / "index.json").write_text(content.replace("KEY", name))
    cache.arrays(WHAT, "one")(lambda: compute(calls))
    assert number_of(calls) == 2
    assert len(index(tmp_path)) == 2


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"folder": 3}', '{"folder": null, "seconds": "x"}'])
def test_a_damaged_record_of_a_job_is_none(tmp_path: Path, content: str) -> None:
    cache = Cache(str(tmp_path))
    cache.note_finished("hash", tmp_path / "job", {})
    (tmp_path / "jobs" / "hash.json").write_text(content)
    assert cache.finished("hash") is None
    assert cache.finished_jobs() == recorded(cache) == []
    numbers = {"host": 1, "device": 2, "model": [], "quant": None, "compress": "", "tasks": {}, "seconds": "x"}
    cache.note_finished("hash", tmp_path / "job", {**numbers, "bits_per_weight": 1.0, "peak_rss_bytes": 1})
    assert recorded(cache) == []


@pytest.mark.parametrize("why", ["a file", "full", "read-only", "deleted"])
def test_a_cache_that_cannot_be_written_costs_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    folder = tmp_path / "cache"
    cache, calls = Cache(str(folder)), tmp_path / "calls"

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC if why == "full" else errno.EROFS, os.strerror(errno.ENOSPC))

    def computed() -> Arrays:
        if why == "deleted":
            shutil.rmtree(folder)
        return compute(calls)

    if why == "a file":
        folder.write_text("in the way")
    elif why == "full":
        monkeypatch.setattr(np, "savez", refuse)
    elif why == "read-only":
        monkeypatch.setattr("slimrun.ops.scratch.os.open", refuse)
    for part in ("", "part 0"):
        arrays = cache.arrays(WHAT, why)(computed, part)
        assert np.array_equal(arrays["x"], np.ones(MEGABYTE))
    cache.note_finished("hash", tmp_path, {})
    assert number_of(calls) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) >= 1
    assert all(line.startswith(f"note: cache.dir={folder} cannot be used (") for line in lines)
    assert not list(tmp_path.rglob("*.scratch"))


def test_what_is_dropped_can_still_be_read_by_who_has_it(tmp_path: Path) -> None:
    cache, calls = Cache(str(tmp_path), max_gb=0.0005), tmp_path / "calls"  # less than one of them
    parts = [
        cache.arrays(WHAT, "key")(lambda value=number: compute(calls, value), f"part {number}") for number in range(3)
    ]
    assert len(list((tmp_path / "baselines").glob("*.npz"))) == 1
    for number, part in enumerate(parts):
        assert np.array_equal(part["x"], np.full(MEGABYTE, number))


def churn(folder: Path, own: int) -> None:
    cache = Cache(str(folder), max_gb=0.0015)
    for number in range(10):
        value = float(10 * own + number)
        for part in ("", "part 0"):
            arrays = cache.arrays(WHAT, value)(lambda value=value: {"x": np.full(MEGABYTE, value)}, part)
            assert np.array_equal(arrays["x"], np.full(MEGABYTE, value))


def test_jobs_never_fail_because_others_drop_what_they_stored(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=churn, args=[tmp_path, own]) for own in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0] * 4
    names = {file.suffix for file in (tmp_path / "baselines").iterdir()}
    assert names == {".npz", ".json"}, "no locks and no scratch pile up"


def test_where_a_job_finished(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path))
    assert cache.finished("hash") is None
    cache.note_finished("hash", tmp_path / "job", {"seconds": 2.5})
    assert cache.finished("hash") == tmp_path / "job"
    assert [job["seconds"] for job in cache.finished_jobs()] == [2.5]
