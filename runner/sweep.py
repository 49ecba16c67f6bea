"""What surrounds the jobs of a multirun: their parent run before, the table of all of them after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from runner import pareto
from runner.config import construct
from runner.display import print_table
from runner.result import write_json
from runner.tracking import Tracker

PARENT_FILE = "parent.json"
COLUMNS = (("bits", "size/bits_per_weight"), ("perplexity", "perplexity/quant"), ("verdict", "perplexity/verdict"))


class SweepCallback(Callback):
    """Hydra calls it in the process that was started, whatever launcher runs the jobs."""

    failed = 0  # jobs of the last multirun that did not end well

    def __init__(self) -> None:
        self.tracker: Tracker | None = None
        self.parent: str | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Open the parent run and leave its id where the jobs find it."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.tracker = build_tracker(config)
        self.parent = self.tracker.start_parent(f"multirun {folder.name}")
        write_json(folder / PARENT_FILE, {"run_id": self.parent})

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Show every job, close the parent run."""
        folder = Path(config.hydra.sweep.dir)
        rows = [summary(path) for path in sorted(folder.rglob("results.json"), key=_number)]
        SweepCallback.failed = sum(row["status"] != "ok" for row in rows)
        names = ["job", "overrides", *(name for name, _ in COLUMNS), "seconds", "status"]
        print_table(
            f"multirun in {config.hydra.sweep.dir}", names, [[str(row[name]) for name in names] for row in rows]
        )
        write_json(folder / pareto.SWEEP_FILE, {"parent_run_id": self.parent, "jobs": _listed(folder)})
        print(f"report: {pareto.report(folder)[-1]}")
        if self.tracker is not None and self.parent is not None:
            self.tracker.end_parent(self.parent, SweepCallback.failed > 0, rows)
            print(f"look next: {self.tracker.look_next()}")


def build_tracker(config: DictConfig) -> Tracker:
    """The tracker alone: the jobs' other values may still be refused."""
    tracker: Tracker = construct(config.tracking, "tracking")
    return tracker


def parent_of(sweep_dir: Path) -> str | None:
    """Id of the parent run that the callback left in the sweep's folder."""
    file = sweep_dir / PARENT_FILE
    if not file.is_file():
        return None
    run_id = json.loads(file.read_text(encoding="utf-8"))["run_id"]
    return None if run_id is None else str(run_id)


def summary(path: Path) -> dict[str, Any]:
    """A row of the table: a job's overrides, headline numbers, seconds and status."""
    result = json.loads(path.read_text(encoding="utf-8"))
    overrides_file = path.parent / ".hydra" / "overrides.yaml"
    overrides: Any = OmegaConf.load(overrides_file) if overrides_file.is_file() else []
    status = result["status"] if result["status"] == "ok" else f"{result['status']}: {result.get('error', '')}"
    seconds = sum(value for key, value in result.items() if key.startswith("time/"))
    numbers = {name: _short(result.get(key, "")) for name, key in COLUMNS}
    return {
        "job": path.parent.name,
        "overrides": " ".join(map(str, overrides)),
        **numbers,
        "seconds": round(seconds),
        "status": status,
    }


def _listed(folder: Path) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("results.json"), key=_number):
        result = json.loads(path.read_text(encoding="utf-8"))
        overrides = list(OmegaConf.load(path.parent / ".hydra" / "overrides.yaml"))
        job = {"number": len(listed), "overrides": overrides, "folder": path.parent.name}
        listed.append(job | {"status": result["status"], "config_hash": result.get("config_hash")})
    return listed


def _short(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value


def _number(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return (int(name) if name.isdigit() else -1, name)
