"""Locks, and scratch files and folders that a killed process leaves: who made them holds a lock on them.

The lock ends with the process, however it ends, so whoever can take it knows that nobody needs the scratch any more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = re.compile(r"-[0-9a-f]{16}\.scratch$")  # how names of scratch end
OWNER, CONTENT = ".owner", "content"  # in a scratch folder: the file that is locked, and what it is for
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}  # the file system has none


class Busy(OSError):
    """Another process holds the lock."""


@contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Inside the block no other process holds the lock of this file, which is made, and removed afterwards.

    Busy when another one does and `wait` is false. A file system without locks excludes nobody.
    """
    descriptor = _lock(path, wait=wait)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def scratch_name(folder: Path, prefix: str) -> Path:
    """A name in the folder that nothing has yet, and that `clear` knows."""
    return folder / f"{prefix}-{secrets.token_hex(8)}.scratch"


@contextmanager
def scratch_file(path: Path, mode: int) -> Iterator[Path]:
    """An empty file beside `path` with this mode less the umask (the owner may write); gone after the block."""
    scratch = scratch_name(path.parent, f".{path.name}")
    descriptor = _lock(scratch, mode=mode | stat.S_IRUSR | stat.S_IWUSR)
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)
        os.close(descriptor)


class ScratchFolder:
    """An empty folder for this user alone, at `path`; gone with its content once it is removed or collected."""

    def __init__(self, prefix: str, parent: Path | str | None = None) -> None:
        """Make it in `parent`, or where temporary files go; what dead processes left there is removed first."""
        parent = Path(parent or tempfile.gettempdir())
        clear(parent)
        outer = scratch_name(parent, prefix)
        outer.mkdir(mode=0o700)
        descriptor = _lock(outer / f"{OWNER}-new")
        (outer / f"{OWNER}-new").rename(outer / OWNER)  # it has its name only once it is locked
        self.path = outer / CONTENT
        self.path.mkdir(mode=0o700)
        self._end = weakref.finalize(self, _remove, outer, descriptor)

    def remove(self) -> None:
        """The folder and all that is in it."""
        self._end()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()


def clear(folder: Path) -> None:
    """Remove the scratch in this folder whose owners are dead, as far as it is this user's."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if NAME.search(entry.name) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                path = Path(entry.path)
                whole = entry.is_dir(follow_symlinks=False)
                with suppress(OSError), _dead(path / OWNER if whole else path):
                    shutil.rmtree(path, ignore_errors=True) if whole else path.unlink()


@contextmanager
def _dead(path: Path) -> Iterator[None]:
    """Inside the block the file is locked; OSError when its owner lives, or cannot be told to be dead."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, *, wait: bool = True, mode: int = 0o600) -> int:
    """Descriptor that holds the lock of a file, which is made when it is not there."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            os.close(descriptor)
            raise Busy(f"{path} is locked by another process") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
        except BaseException:  # a signal while waiting
            os.close(descriptor)
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False)):
                return descriptor
        os.close(descriptor)  # who held it removed the file meanwhile


def _remove(folder: Path, descriptor: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)
