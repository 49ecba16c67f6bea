"""Asking a store that may be away: it never costs a finished run, and is not asked again and again."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from slimrun.runner.folder import read_json, write_json
from slimrun.runner.tracking.deadline import ANSWER_SECONDS
from slimrun.runner.tracking.uri import database_file, masked

AWAY = ".tracking-away.json"  # in the folder of a multirun: a store that its jobs need not ask again
SLOW_SECONDS = 2.0  # a failure that took longer is not tried again
MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # its own start-up messages, not errors
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the default waits minutes; what failed is delivered later
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWER_SECONDS),
}
log = logging.getLogger("slimrun")
away: set[str] = set()  # stores that this process does not ask again
said: set[str] = set()  # notes that this process has printed
T = TypeVar("T")


def attempted(uri: str, sweep: Path | None, work: Callable[[], T]) -> T | None:
    """What `work` returns; None when the store at the address (with its password) does not take it.

    A server that is slow to fail is not asked again by this process, nor by the jobs of the sweep.
    """
    address = masked(uri)
    if sweep and (read_json(sweep / AWAY) or {}).get("uri") == address:
        return None
    if address not in away:
        start = math.inf
        try:
            _prepare()
            start = time.monotonic()
            return work()
        except Exception as error:
            log.error("tracking failed:\n%s", masked(traceback.format_exc()))
            _say(address, masked(str(error).strip().split("\n")[0])[:300] or type(error).__name__)
            slow = time.monotonic() - start > SLOW_SECONDS and not database_file(uri)
            if slow or isinstance(error, TimeoutError):
                away.add(address)
    if sweep and address in away:
        write_json(sweep / AWAY, {"uri": address})
    return None


def _say(address: str, reason: str) -> None:
    note = (
        f"note: tracking.uri={address} does not take the run ({reason}); the results are kept, and "
        "the next start with this uri delivers them, or slimrun tracking.sync=true"
    )
    if note not in said:
        print(note, file=sys.stderr)
    said.add(note)


def _prepare() -> None:
    """Import MLflow with its settings."""
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.system_metrics"):  # a server that goes away is our note, not theirs
        logging.getLogger(name).setLevel(logging.ERROR)
    import slimrun.runner.tracking.store  # noqa: F401
