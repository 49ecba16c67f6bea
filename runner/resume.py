"""What a job that is killed goes on from: notes below `cache.dir`, by the hash of everything that shapes the job."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from slimrun.ops import scratch
from slimrun.ops.calibration.journal import Journal

FOLDER = "resume"
SECONDS = 7 * 86400.0  # after which notes that nobody has gone on from are removed


@contextmanager
def journal(cache: Path, config_hash: str) -> Iterator[Journal]:
    """The notes of the job with this hash, gone once the block has ended well.

    Without notes where another process runs the same job, or the cache cannot be written.
    """
    folder = cache / FOLDER / config_hash
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(scratch.lock(folder.with_suffix(".lock"), wait=False))
        except OSError:
            yield Journal()
            return
        scratch.clear(folder)
        if any(folder.iterdir()):
            print(f"note: a stopped attempt of this job is gone on with; its notes are in {folder}", file=sys.stderr)
        yield Journal(folder)
        shutil.rmtree(folder, ignore_errors=True)


def clear(cache: Path) -> None:
    """Remove notes of jobs that nobody has gone on with."""
    for folder in (cache / FOLDER).glob("*/"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > SECONDS:
                shutil.rmtree(folder)
