"""The folder of a job and of a multirun: what its files are called, and how they are written and read back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from omegaconf import DictConfig, OmegaConf

from slimrun.evaluation.base import Outputs
from slimrun.evaluation.comparison import Score
from slimrun.ops.files import replacing

ARTIFACT = "artifact"
EXPORT = "export"  # holds a folder a target
RESULTS = "results.json"
SCORES = "scores.json"
SAMPLES = "samples.json"  # every item of each task, changed answers first
OUTPUTS = "outputs.npz"
FLOAT, QUANT = "float", "quant"  # its sides
Sides = Mapping[str, Outputs]
UPLOADED = (
    "config.yaml",
    "report.md",
    "report.html",
    "layers.csv",
    "layers.png",
    "scores.png",
    SCORES,
    SAMPLES,
    OUTPUTS,
)  # beside the numbers
SWEEP = "sweep.json"  # in the folder of a multirun: its command, its parent run, its jobs
RUN = "tracking.json"  # in the folder of a job: its run


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when there is no such file or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON object atomically."""
    with replacing(path, 0o644) as scratch:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        # the name of a folder may be no UTF-8; what replaces such a byte is JSON's own escape for it
        scratch.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def bundle_of(job: Path, results: Mapping[str, Any]) -> Path | None:
    """The bundle that a job's results are about, made in its folder or where it was done before; None if it is gone."""
    place = Path(results.get("done_in", job))
    same = (read_json(place / RESULTS) or {}).get("config_hash") == results.get("config_hash")  # no other job since
    return place / ARTIFACT if same and (place / ARTIFACT).is_dir() else None


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """The rows of a run."""
    write_json(path, {"scores": [asdict(score) for score in scores]})


def read_scores(path: Path) -> list[Score] | None:
    """The rows that `write_scores` left; None when there are none or the file is damaged."""
    try:
        rows: list[dict[str, Any]] = (read_json(path) or {})["scores"]
        pairs = ("float_interval", "quant_interval", "interval")
        return [Score(**{**row, **{key: row[key] and tuple(row[key]) for key in pairs}}) for row in rows]
    except (KeyError, TypeError, ValueError):
        return None


def write_outputs(path: Path, outputs: Mapping[str, Sides]) -> None:
    """What both models answered, item by item, as `<task>/<side>/<array>`: what the comparison is made of."""
    named = {
        f"{task}/{side}/{name}": array
        for task, sides in outputs.items()
        for side, arrays in sides.items()
        for name, array in arrays.items()
    }
    with replacing(path, 0o644) as scratch, scratch.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **named)


def read_outputs(path: Path, side: str = QUANT) -> dict[str, Outputs]:
    """Task -> arrays of one side, as `write_outputs` left them; ValueError when the file is missing or damaged."""
    outputs: dict[str, Outputs] = {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            for key in stored.files:
                task, *of, name = key.split("/")
                if (of or [QUANT]) == [side]:  # older files hold the quantized side alone, and do not say so
                    outputs.setdefault(task, {})[name] = stored[key]
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({str(error).splitlines()[0]}); run it again") from error
    return outputs


def flat(config: DictConfig) -> dict[str, object]:
    """The resolved configuration, keys joined by dots."""
    flat: dict[str, object] = {}

    def walk(value: object, prefix: str) -> None:
        if isinstance(value, dict) and value:
            for key, child in value.items():
                walk(child, f"{prefix}.{key}" if prefix else str(key))
        else:
            flat[prefix] = value

    walk(OmegaConf.to_container(config, resolve=True), "")
    return flat


def run_in(file: Path, target: str) -> dict[str, Any]:
    """What the file of a job or of a multirun knows of its run in a store's experiment: run_id, params, delivered."""
    return dict((read_json(file) or {}).get("runs", {}).get(target, {}))


def note_run(file: Path, target: str, known: dict[str, Any], **latest: str) -> None:
    """Add to what `run_in` tells; `latest` is what the file tells of the last run itself."""
    record = read_json(file) or {}
    runs = record.get("runs", {})
    write_json(file, {**record, **latest, "runs": {**runs, target: {**runs.get(target, {}), **known}}})
