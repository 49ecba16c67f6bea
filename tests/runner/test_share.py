"""Cards and cores of jobs that run at once, with pretend cards."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from slimrun.ops.framework.base import Device
from slimrun.runner import share

CUDA = Device(name="cuda", type="cuda")
NPU_MULTI = Device(name="npu_multi", type="npu", device_map="auto")


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cards of either kind, and a folder for their leases."""
    monkeypatch.setenv("SLIMRUN_CACHE", str(tmp_path))
    monkeypatch.setattr(share, "bound", [])
    monkeypatch.setattr(share, "WAIT_SECONDS", 0.005)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1")
    return tmp_path


def use_a_card(diary: Path) -> None:
    for _ in range(3):
        with share.cards(CUDA) as leased, diary.open("a", buffering=1) as stream:
            assert os.environ["CUDA_VISIBLE_DEVICES"] == leased[0]
            stream.write(f"{leased[0]} begin {os.getpid()}\n")
            time.sleep(0.01)
            stream.write(f"{leased[0]} end {os.getpid()}\n")


def test_no_card_is_used_by_two_jobs_at_once(pretend: Path) -> None:
    diary = pretend / "diary"
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=use_a_card, args=[diary]) for _ in range(5)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0] * 5
    lines = [line.split() for line in diary.read_text().splitlines()]
    assert len(lines) == 2 * 3 * 5
    assert {card for card, _, _ in lines} <= {"2", "3"}
    for card in ("2", "3"):
        events = [(what, process) for where, what, process in lines if where == card]
        begins, ends = events[::2], events[1::2]
        assert [what for what, _ in begins] == ["begin"] * len(begins)
        assert ends == [("end", process) for _, process in begins]


def test_a_card_that_another_job_has_is_passed_over(pretend: Path) -> None:
    with share._lock("cuda", "2"), share.cards(CUDA) as leased:
        assert leased == ["3"]


@pytest.mark.parametrize("taken", ["nobody", "open", "link", "other user"])
def test_leases_lie_in_a_folder_that_only_this_user_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    monkeypatch.setenv("SLIMRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "session"))
    first = share.lease_folder()
    assert first.parent == tmp_path / "cache"
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    if taken == "open":
        first.chmod(0o777)
    elif taken == "link":
        first.rename(tmp_path / "elsewhere")
        first.symlink_to(tmp_path / "elsewhere")
    elif taken == "other user":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(first, 65534, 65534)
    assert share.lease_folder().parent == tmp_path / ("cache" if taken == "nobody" else "session")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    if taken != "nobody":
        with pytest.raises(OSError, match="SLIMRUN_CACHE=DIR"):
            share.lease_folder()


def test_a_process_keeps_the_card_its_driver_has_seen(pretend: Path) -> None:
    with share.cards(CUDA) as first:
        pass
    with share.cards(CUDA) as again:
        assert again == first == ["2"]


def test_a_model_over_several_cards_takes_them_all(pretend: Path) -> None:
    with share.cards(NPU_MULTI) as leased:
        assert leased == ["0", "1"]
        assert os.environ["ASCEND_RT_VISIBLE_DEVICES"] == "0,1"


def test_the_cpu_is_no_card(pretend: Path) -> None:
    with share.cards(Device(name="cpu", type="cpu")) as leased:
        assert leased == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


@pytest.mark.parametrize(
    ("launcher", "threads"),
    [
        ({}, 5),
        ({"n_jobs": 2}, 4),
        ({"n_jobs": -1}, 1),
        ({"n_jobs": 20}, 1),
        ({"cpus_per_task": 3}, 3),
        ({"cpus_per_task": None}, 5),
        ({"ray": {"remote": {"num_cpus": 2}}}, 2),
    ],
)
def test_threads_are_divided(launcher: dict[str, object], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert share.threads_of(OmegaConf.create(launcher), usual=5) == threads
