"""What tracking stores have not got yet: a file for each folder and the experiment of the store that it belongs to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from slimrun.runner.folder import read_json, write_json
from slimrun.runner.tracking.uri import masked


@dataclass(frozen=True)
class Waiting:
    """A job's or a multirun's folder that waits, with all that it is delivered with."""

    folder: str
    sweep: str | None  # the multirun that the job belongs to
    uri: str  # masked
    experiment: str = "slimrun"
    log_weights: bool = False

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

    def done(self, outbox: Path) -> None:
        """Take it out: it waits no longer."""
        with suppress(OSError):
            self.file(outbox).unlink(missing_ok=True)


def waiting(outbox: Path, uri: str) -> Iterator[Waiting]:
    """What waits for a store, whatever its experiment."""
    for file in sorted(outbox.glob("*.json")):
        try:
            entry = Waiting(**(read_json(file) or {}))
        except TypeError:  # damaged
            continue
        if masked(entry.uri) != uri:
            continue
        entry = replace(entry, uri=uri)
        if file != entry.file(outbox):  # of an older version, which wrote passwords
            entry.note(outbox)
            with suppress(OSError):
                file.unlink()
        yield entry
