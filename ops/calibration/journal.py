"""What a run that was killed goes on from: steps that are done, noted in files of one folder.

A note is made when so many seconds have passed since the last one, so a short run makes none, and a kill costs no more
than the step that was under way. Whoever gives the folder answers for what is noted there being of this very run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slimrun.ops.files import replacing
from slimrun.ops.memory import release

SECONDS = 10.0  # between two notes
Tensors = dict[str, Tensor]

log = logging.getLogger(__name__)


class Journal:
    """Notes of steps in `folder`; without one nothing is kept. A folder that is full or damaged costs time alone.

    Tensors come back to the devices that they were on.
    """

    def __init__(self, folder: Path | None = None, seconds: float = SECONDS) -> None:
        self.folder = folder
        self.seconds = seconds
        self._last = time.monotonic()
        self._counts: dict[str, int] = {}  # kind -> how many notes there are

    @property
    def due(self) -> bool:
        """Whether it is time for a note."""
        return self.folder is not None and time.monotonic() - self._last >= self.seconds

    def notes(self, kind: str) -> Iterator[Tensors]:
        """The notes of this kind, the first one first; their tensors lie in mapped files."""
        self._counts[kind] = 0
        while self.folder is not None and (note := _read(self.folder / f"{kind}.{self._counts[kind]}.safetensors")):
            self._counts[kind] += 1
            yield note

    def add(self, kind: str, tensors: Mapping[str, Tensor]) -> Tensors:
        """One more note of this kind, whose others were read before; gives its tensors, which lie in its file now."""
        name = f"{kind}.{self._counts.get(kind, 0)}"
        self._write(name, tensors)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self.state(name) or dict(tensors)

    def state(self, kind: str) -> Tensors:
        """The last state of this kind; empty when there is none."""
        return _read(self.folder / f"{kind}.safetensors") if self.folder is not None else {}

    @property
    def begun(self) -> bool:
        """Whether there is a note: only then can a run be gone on with."""
        return self.folder is not None and any(self.folder.glob("*.safetensors"))

    def known(self, kind: str, compute: Callable[[], Tensors]) -> Tensors:
        """The state of this kind; computed if there is none, and kept where notes are being made."""
        if not (state := self.state(kind)):
            state = compute()
            if self.due or self.begun:
                self.keep_state(kind, state)
        return state

    def forget(self, kind: str) -> None:
        """Remove the notes and the state of this kind: what they led to is kept."""
        for file in self.folder.glob(f"{kind}.*safetensors") if self.folder is not None else ():
            file.unlink(missing_ok=True)

    def keep_state(self, kind: str, tensors: Mapping[str, Tensor]) -> None:
        """A state in the place of the one before."""
        self._write(kind, tensors)

    def _write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        assert self.folder is not None
        devices = {key: str(tensor.device) for key, tensor in tensors.items() if tensor.device.type != "cpu"}
        try:
            with replacing(self.folder / f"{name}.safetensors", 0o600) as scratch:
                copies = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
                save_file(copies, scratch, devices)
            release(tensors.values())  # those of them that lie in files
        except (OSError, SafetensorError) as error:
            log.warning("%s: %s; from here on the run cannot be resumed", self.folder, error)
            self.folder = None
        self._last = time.monotonic()


class Results:
    """Results of a kind by name: those that the journal has, and new ones, which are noted when it is time."""

    def __init__(self, journal: Journal, kind: str) -> None:
        self.journal = journal
        self.kind = kind
        self._new: Tensors = {}
        self._known: dict[str, Tensors] = {}
        for note in journal.notes(kind):
            self._known |= by_name(note)
        if self._known:
            log.info("%s: goes on after %d linears, where it was stopped", kind, len(self._known))

    def get(self, name: str, compute: Callable[[], Tensors]) -> Tensors:
        """The result of this name; computed if it is not known."""
        if name in self._known:
            return self._known[name]
        result = compute()
        if self.journal.folder is None:
            self._new.clear()  # which would keep all of them
            return result
        self._new |= {f"{name}/{part}": tensor for part, tensor in result.items()}
        if self.journal.due:
            self.note()
        return result

    def note(self) -> None:
        """Note those that are new now."""
        if self._new:
            self.journal.add(self.kind, self._new)
            self._new = {}


def by_name(note: Tensors) -> dict[str, Tensors]:
    """The tensors NAME/PART of a note, by name and then by part."""
    results: dict[str, Tensors] = {}
    for key, tensor in note.items():
        name, _, part = key.rpartition("/")
        results.setdefault(name, {})[part] = tensor
    return results


@dataclass(frozen=True)
class Noted:
    """A piece of work whose steps are noted: `take` gives what was found since it was last asked, `give` takes it."""

    journal: Journal
    kind: str
    take: Callable[[], Tensors]
    give: Callable[[Tensors], None]


def _read(file: Path) -> Tensors:
    try:
        with safe_open(file, framework="pt") as stored:
            devices = stored.metadata() or {}
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - safe_open is no mapping
            return {key: tensor.to(devices.get(key, "cpu")) for key, tensor in tensors.items()}
    except (OSError, SafetensorError):
        return {}
