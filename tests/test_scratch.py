"""Locks and scratch: alive owners are left alone, what dead ones left goes, and nothing of others ever does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slimrun.ops import bundle
from slimrun.ops.compress.none import NoCompression
from slimrun.ops.files import replacing, staging
from slimrun.ops.scratch import Busy, ScratchFolder, clear, lock, scratch_file

FORK = multiprocessing.get_context("fork")


def write_and_wait(folder: Path, kind: str) -> None:
    """Be in the middle of writing when the signal comes."""
    if kind == "folder":
        scratch = ScratchFolder("slimrun-", folder)
        (scratch.path / "weights").write_bytes(b"w")
        time.sleep(60)
    elif kind == "file":
        with replacing(folder / "results.json", 0o644) as path:
            path.write_bytes(b"half")
            time.sleep(60)
    elif kind == "staging":
        with staging(folder / "bundle") as path:
            (path / "weights").write_bytes(b"w")
            time.sleep(60)
    else:

        def describe(path: Path) -> None:
            (path / "config.json").write_text("{}")
            time.sleep(60)

        bundle.write(folder / "artifact", {}, {}, "W8A8S", NoCompression(), describe)


def begun(folder: Path, kind: str) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=write_and_wait, args=[folder, kind])
    process.start()
    while not any(file.stat().st_size for file in folder.rglob("*") if file.is_file()):
        time.sleep(0.005)
    return process


@pytest.mark.parametrize("kind", ["folder", "file", "staging", "bundle"])
def test_what_a_kill_leaves_goes_with_the_next_start_and_what_lives_stays(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "bundle" if kind == "staging" else tmp_path
    process = begun(tmp_path, kind)
    clear(place)
    assert len(list(place.iterdir())) == 1, "its owner lives"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    clear(place)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("end", [lambda scratch: scratch.remove(), lambda scratch: None])
def test_a_scratch_folder_is_private_and_goes_when_it_is_not_needed(
    tmp_path: Path, end: Callable[[ScratchFolder], None]
) -> None:
    scratch = ScratchFolder("slimrun-", tmp_path)
    [outer] = tmp_path.iterdir()
    assert stat.S_IMODE(outer.stat().st_mode) == stat.S_IMODE(scratch.path.stat().st_mode) == 0o700
    (scratch.path / "file").touch()
    end(scratch)
    del scratch
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_others_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["notes.scratch", ".artifact-backup", "slimrun-0123456789abcdef"]
    for name in names:
        (tmp_path / name).mkdir()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / ".a-0123456789abcdef.scratch").symlink_to(precious)
    folder = tmp_path / ".b-0123456789abcdef.scratch"  # whose owner cannot be told
    folder.mkdir()
    clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*names, "precious", ".a-0123456789abcdef.scratch", folder.name]
    )
    (folder / ".owner").touch()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    clear(tmp_path)
    assert folder.is_dir()


def test_a_lock_excludes_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path):
        with pytest.raises(Busy), lock(path, wait=False):
            pass
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


def count_up(folder: Path) -> None:
    for _ in range(50):
        with lock(folder / "lock"):
            value = int((folder / "number").read_text())
            (folder / "number").write_text(str(value + 1))


def test_waiting_for_a_lock_whose_file_is_removed_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    processes = [FORK.Process(target=count_up, args=[tmp_path]) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert (tmp_path / "number").read_text() == "200"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("mode", [0o644, 0o600, 0o400])
def test_files_have_their_mode_less_the_umask_also_while_they_are_written(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "file", mode) as scratch:
            assert stat.S_IMODE(scratch.stat().st_mode) == mode & ~umask | 0o600
            scratch.write_bytes(b"content")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode & ~umask
    finally:
        os.umask(before)


def test_a_failure_leaves_the_old_file_and_no_scratch(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "file", 0o644) as scratch:
        scratch.write_text(str(1 / 0))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_scratch_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    with scratch_file(tmp_path / "a", 0o600) as one, scratch_file(tmp_path / "a", 0o600) as two:
        clear(tmp_path)
        assert one != two
        assert one.exists()
        assert two.exists()
