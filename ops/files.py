"""Writing files so that they are there whole or not at all, with the permissions of the msModelSlim guide."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimrun.ops.scratch import ScratchFolder, scratch_file

FOLDER_MODE, WEIGHT_MODE, DESCRIPTION_MODE = 0o750, 0o400, 0o600


def make_folder(path: Path) -> Path:
    """The folder, made with mode 0750 when it is not there; one that is there keeps its mode."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(FOLDER_MODE)  # mkdir's own mode is cut by the umask
    return path


@contextmanager
def replacing(path: Path, mode: int) -> Iterator[Path]:
    """A temporary name beside `path` to write to; on success it takes the place of `path`, on failure it is gone.

    The bytes reach the disk before the name does, and the old file stays until then, read-only or not. The file has
    `mode` less what the umask forbids.
    """
    with scratch_file(path, mode) as scratch:
        allowed = scratch.stat().st_mode
        yield scratch
        scratch.chmod(mode & allowed)
        sync(scratch)
        os.replace(scratch, path)
    sync(path.parent)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files take their places in `folder` (made when missing) once all are written.

    On failure nothing in `folder` has changed. Other files of the folder are left alone.
    """
    make_folder(folder)
    with ScratchFolder(".saving", folder) as scratch:
        yield scratch
        for file in sorted(scratch.iterdir()):
            os.replace(file, folder / file.name)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
