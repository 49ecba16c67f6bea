"""A signal ends a process, also while it computes something that Python does not look into."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, sys, threading
from slimrun.runner import interrupt

interrupt.PATIENCE_SECONDS = 1.0
try:
    with interrupt.interruptible():
        threading.Timer(1.0, print, ["begun"], {{"flush": True}}).start()  # when the work is under way
        {work}
except KeyboardInterrupt:
    print("heard")
    sys.exit(1)
"""
LONG = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # without Python's lock, as ours and torch's products
SHORT = "while True: hashlib.pbkdf2_hmac('sha256', b'', b'', 1000)"


@pytest.mark.parametrize(
    ("work", "said", "told"),
    [(LONG, "", "slimrun: interrupted in the middle of a long computation; run the same command again\n"),
     (SHORT, "heard\n", "")],
)  # fmt: skip
def test_a_signal_ends_what_runs(work: str, said: str, told: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(work=work)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == (said, told)
    assert process.returncode == 1
