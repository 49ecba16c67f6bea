"""The output folder of a run or a multirun: one process has it at a time, and nothing of others is in its way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from slimrun.ops.export.base import WEIGHTS
from slimrun.ops.scratch import Busy, lock
from slimrun.runner.config import ConfigError
from slimrun.runner.folder import ARTIFACT, EXPORT, RESULTS, RUN, SWEEP, UPLOADED

LOCK = ".lock"
LOG = "run.log"
WRITTEN = (ARTIFACT, EXPORT, RESULTS, *UPLOADED, LOG, RUN, SWEEP, ".hydra")
DESCRIPTIONS = ("quant_model_description*.json", "slimrun.json")  # one of them is in every bundle


@contextmanager
def claimed(folder: Path, key: str, *, by_time: bool) -> Iterator[Path]:
    """Inside the block the folder is this process's; made when it is not there. ConfigError when it cannot be.

    A folder that is named by the time of its start (`by_time`) is never used twice: where it is there already, the
    next ones are NAME-1, NAME-2, ... `key` is what the user chooses the folder by.
    """
    with _can_be_written(folder, key):
        folder = _new(folder) if by_time else folder
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock(folder / LOCK, wait=False):
            check(folder, key)
            yield folder
    except Busy:
        raise ConfigError(
            f"{key}={folder} is being worked on by another slimrun; wait for it, or choose another: {key}=DIR"
        ) from None


def check(folder: Path, key: str) -> None:
    """ConfigError when the folder cannot be written, or holds something of others where a run writes."""
    with _can_be_written(folder, key):
        existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}={folder}: {existing} cannot be written; choose another with {key}=DIR")
    if not folder.is_dir():
        return
    for place in (folder, *(item for item in folder.iterdir() if item.is_dir() and not item.is_symlink())):
        if obstacle := _in_the_way(place):
            raise ConfigError(f"{key}={folder}: {obstacle}; move it, or choose another with {key}=DIR")


def chosen(key: str, folder: Path) -> str:
    """The override that makes Hydra take this folder, whatever characters are in its name."""
    text = str(folder).replace("${", "\\${")  # no interpolation
    return f"{key}={QuotedString(text, Quote.single).with_quotes()}"


@contextmanager
def _can_be_written(folder: Path, key: str) -> Iterator[None]:
    """ConfigError on what the system says of a folder."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{key}={folder} cannot be made ({error.strerror}); choose another with {key}=DIR") from error


def _new(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        name = folder.with_name(f"{folder.name}-{number}" if number else folder.name)
        try:
            name.mkdir()
        except FileExistsError:
            continue
        return name
    raise AssertionError("count() has no end")


def _in_the_way(folder: Path) -> str:
    """What in this folder a run would follow or replace although it is not a run's; "" if nothing is."""
    links = [name for name in WRITTEN if (folder / name).is_symlink()]
    if links:
        return f"{folder / links[0]} is a link"
    artifact = folder / ARTIFACT
    if artifact.exists() and not artifact.is_dir():
        return f"{artifact} is a file"
    if artifact.is_dir() and any(artifact.iterdir()) and not any(any(artifact.glob(kind)) for kind in DESCRIPTIONS):
        return f"{artifact} holds something else than a bundle"
    for target in (folder / EXPORT).glob("*"):
        if not any(file.suffix in WEIGHTS for file in target.glob("*")):
            return f"{target} holds something else than an export"
    return ""
