"""A job's share of the machine when several run at once: a card of its own, and its part of the cores."""

from __future__ import annotations

import os
import platform
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from slimrun.ops.framework.base import Device

VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}  # torch's name -> what hides cards
NODES = {"cuda": r"nvidia\d+", "npu": r"davinci\d+"}  # of the cards, under /dev
WAIT_SECONDS = 1.0
bound: list[str] = []  # cards of this process: its driver has seen them and cannot change to others


@contextmanager
def share_of_machine(device: Device, parallel: bool) -> Iterator[None]:
    """Inside the block the job has its cards to itself, and its threads are its share of the cores."""
    if not parallel:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_of(HydraConfig.get().launcher, threads))
    try:
        with cards(device):
            yield
    finally:
        torch.set_num_threads(threads)


def threads_of(launcher: DictConfig, usual: int) -> int:
    """Threads of one job: what its launcher gives it, or its share of the cores beside `n_jobs` others."""
    cores = len(os.sched_getaffinity(0))
    given = launcher.get("cpus_per_task") or OmegaConf.select(launcher, "ray.remote.num_cpus")
    if given:
        return max(1, int(given))
    jobs = launcher.get("n_jobs")
    if jobs is None:
        return usual  # one job after the other
    return max(1, cores // (cores if jobs < 0 else jobs))


@contextmanager
def cards(device: Device) -> Iterator[list[str]]:
    """Lease one card, or all visible ones for a model that is spread over them; none on the CPU.

    A card is a file that one process locks, so the lease ends with the process, however it ends. All jobs of a user on
    a machine share these files, whatever sweep they belong to.
    """
    if device.type not in VISIBLE:
        yield []
        return
    visible = bound or visible_cards(device.type)
    with ExitStack() as leases:
        if device.device_map:
            for card in sorted(visible):  # in one order, so that two jobs never wait for each other
                leases.enter_context(_lock(device.type, card))
        else:
            visible = [_first_free(leases, device.type, visible)] if visible else []
        if visible:
            bound[:] = visible
            os.environ[VISIBLE[device.type]] = ",".join(visible)
        yield visible


def visible_cards(kind: str) -> list[str]:
    """Cards that this process may use: those its environment names, else all the machine has."""
    named = os.environ.get(VISIBLE[kind])
    if named is not None:
        return [card.strip() for card in named.split(",") if card.strip()]
    nodes = [file.name for file in Path("/dev").iterdir() if re.fullmatch(NODES[kind], file.name)]
    return sorted((re.sub(r"\D", "", name) for name in nodes), key=int)


def _first_free(leases: ExitStack, kind: str, visible: Sequence[str]) -> str:
    """Wait until one of the cards is free, and lock it."""
    while True:
        for card in visible:
            lock = _lock(kind, card)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            leases.callback(lock.release)
            return card
        time.sleep(WAIT_SECONDS)


def _lock(kind: str, card: str) -> Any:
    return FileLock(lease_folder() / f"{kind}-{card}.lock")


def lease_folder() -> Path:
    """A folder that only this user can write, the same for all its jobs on this machine; OSError when there is none.

    Below the cache, since XDG_RUNTIME_DIR goes with the last login and is not set everywhere; that one is the second
    choice. Whoever could make the folder first could keep all cards leased.
    """
    cache = os.environ.get("SLIMRUN_CACHE", "~/.cache/slimrun")
    for parent in (os.path.expanduser(cache), os.environ.get("XDG_RUNTIME_DIR", "")):
        if os.path.isabs(parent):
            folder = Path(parent) / f"leases-{platform.node()}-{os.geteuid()}"
            with suppress(OSError):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                entry = folder.lstat()
                if stat.S_ISDIR(entry.st_mode) and entry.st_uid == os.geteuid() and not entry.st_mode & 0o022:
                    return folder
    raise OSError("no folder of this user's own for the leases of cards; set SLIMRUN_CACHE=DIR")
