"""What tracking stores have not got yet: a file for each folder and the experiment of the store that it belongs to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from runner.result import read_json, write_json


@dataclass(frozen=True)
class Waiting:
    """A job's or a multirun's folder that waits, with all that it is delivered with."""

    folder: str
    sweep: str | None  # the multirun that the job belongs to
    uri: str  # masked
    experiment: str
    log_weights: bool

    def file(self, outbox: Path) -> Path:
        """Its place in the outbox: one for each folder and experiment."""
        name = sha256("\n".join([self.folder, self.uri, self.experiment]).encode()).hexdigest()[:32]
        return outbox / f"{name}.json"

    def note(self, outbox: Path) -> None:
        """Put it there; a line on stderr when the outbox cannot be written, for the run goes on."""
        try:
            outbox.mkdir(parents=True, exist_ok=True)
            write_json(self.file(outbox), asdict(self))
        except OSError as error:
            print(f"note: {outbox} cannot be written ({error.strerror}); nothing is delivered later", file=sys.stderr)


def waiting(outbox: Path, uri: str) -> Iterator[Waiting]:
    """What waits for a store, whatever its experiment."""
    for file in sorted(outbox.glob("*.json")):
        try:
            entry = Waiting(**(read_json(file) or {}))
        except TypeError:  # damaged, or of another version
            continue
        if entry.uri == uri:
            yield entry
