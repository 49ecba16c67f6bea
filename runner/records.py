"""What finished runs leave for the plans of later ones: a line each in `runs.jsonl` of the cache folder.

A plan takes from them how long a run like it took, how much memory, how many bits a weight, and whether the very same
run is done already. Deleting the file is safe: plans then estimate, or say that they do not know.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from ops.files import replacing
from runner.experiment import Experiment
from runner.result import Result

FILE = "runs.jsonl"
KEPT = 1000  # lines, the newest


@dataclass(frozen=True)
class Record:
    """A finished run, described so that a later one can be told to be like it."""

    config_hash: str
    folder: str
    host: str
    device: str
    model: str
    quant: str  # the method with its knobs
    compress: str
    tasks: dict[str, str]  # name -> protocol
    seconds: float
    bits_per_weight: float
    peak_rss_bytes: int

    @property
    def method(self) -> str:
        """The method without its knobs."""
        return self.quant.partition("(")[0]


def describe(experiment: Experiment) -> dict[str, Any]:
    """The fields of a record that are known before the run."""
    return {
        "host": platform.node(),
        "device": experiment.device.name,
        "model": repr(experiment.model),
        "quant": repr(experiment.quant),
        "compress": repr(experiment.compress),
        "tasks": experiment.protocols(),
    }


def add(experiment: Experiment, result: Result, output: Path) -> None:
    """Append the finished run; safe under parallel jobs."""
    record = Record(
        config_hash=result.config_hash,
        folder=str(output.absolute()),
        seconds=sum(float(value) for key, value in result.metrics.items() if key.startswith("time/")),
        bits_per_weight=float(result.metrics["size/bits_per_weight"]),
        peak_rss_bytes=int(result.metrics["memory/peak_rss_bytes"]),
        **describe(experiment),
    )
    file = experiment.cache.path / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        lines = file.read_text(encoding="utf-8").splitlines()[1 - KEPT :] if file.is_file() else []
        lines.append(json.dumps(asdict(record), ensure_ascii=False))
        with replacing(file, 0o644) as scratch:
            scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(cache: Path) -> list[Record]:
    """All records, the oldest first; a line that is none is skipped."""
    file = cache / FILE
    names = {field.name for field in fields(Record)}
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and values.keys() == names:
            found.append(Record(**values))
    return found


def finished(records: list[Record], config_hash: str) -> str | None:
    """Folder of a run of this hash whose results are still there."""
    for record in reversed(records):
        if record.config_hash == config_hash:
            try:
                results = json.loads((Path(record.folder) / "results.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if results.get("status") == "ok" and results.get("config_hash") == config_hash:
                return record.folder
    return None
