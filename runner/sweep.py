"""What surrounds the jobs of a multirun: its folder and parent run before them, the table of all of them after."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from slimrun.runner.config import CompositionError, ConfigError, build, build_tracker
from slimrun.runner.display import print_table
from slimrun.runner.folder import ARTIFACT, RESULTS, SWEEP, read_json, write_json
from slimrun.runner.how_small import Dial, answer, dial_of, put_in_place
from slimrun.runner.job import OK, STOPPED
from slimrun.runner.overrides import command_of, short_name
from slimrun.runner.pairs import told_apart
from slimrun.runner.report import sweep as report
from slimrun.runner.report.pareto import Job, panels, read_jobs
from slimrun.runner.status import DONE, FAILED, GATED
from slimrun.runner.tracking.base import Tracker

FOLDERS = "multirun/*/*"  # where conf/config.yaml puts multiruns
RECORDED = {"job", "overrides", "status"}  # what a job always leaves in its results.json
LEFT = "left"  # status of a job that was not begun or has not ended


class SweepCallback(Callback):
    """Hydra calls it in the process that was started, whatever launcher runs the jobs."""

    status: int | None = None  # exit status of the multirun; null until it has ended

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Open the parent run, whose id the jobs find in sweep.json."""
        build_tracker(config).begin_sweep(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Show every job, close the parent run."""
        folder, axis = Path(config.hydra.sweep.dir), config.sweep.axis
        SweepCallback.status = conclude(folder, build_tracker(config), axis, dial_of(config))


def begun_before(overrides: Sequence[str]) -> Path | None:
    """The folder where the same command was begun last."""
    before = [file for file in Path().glob(f"{FOLDERS}/{SWEEP}") if _command_in(file) == command_of(overrides)]
    return max(before, key=lambda file: file.stat().st_mtime).parent.absolute() if before else None


def check_apart(configs: Sequence[DictConfig], listed: bool) -> None:
    """CompositionError when jobs would write over each other; those that a search chooses are not known yet."""
    jobs = list(enumerate(configs)) if listed else [(number, configs[0]) for number in range(2)]
    where: dict[str, int] = {}
    for number, config in jobs:
        if not listed and OmegaConf.is_interpolation(config.hydra.sweep, "subdir"):
            return
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        subdir = str(config.hydra.sweep.subdir)
        if where.setdefault(os.path.normpath(subdir), number) != number:
            raise CompositionError(
                f"hydra.sweep.subdir={subdir} is the folder of several jobs, which would write over each other; "
                "allowed: one of its own for each, as by hydra.sweep.subdir='${hydra.job.num}'"
            )


def begin(folder: Path, overrides: Sequence[str], jobs: Sequence[Sequence[str]], resume: bool) -> None:
    """Write the sweep.json that names the jobs into the claimed folder; ConfigError if it holds another sweep.

    `jobs` is empty when the sweeper chooses them as it goes.
    """
    record = read_json(folder / SWEEP) or {}
    command = command_of(overrides)
    if resume and record.get("command", command) != command:
        raise ConfigError(
            f"hydra.sweep.dir={folder} holds another sweep (slimrun -m {shlex.join(map(str, record['command']))}); "
            "choose another folder, or sweep.resume=false to replace it"
        )
    if not resume:
        record = {key: record[key] for key in record if key == "bundle"}
        for file in folder.glob(f"*/{RESULTS}"):
            file.unlink()
    (folder / STOPPED).unlink(missing_ok=True)
    planned = [
        {"number": number, "overrides": list(job), "folder": str(number), "status": LEFT, "config_hash": ""}
        for number, job in enumerate(jobs)
    ]
    name = short_name([item for item in command if not item.startswith("hydra")])
    write_json(folder / SWEEP, {"parent_run_id": None, "uri": None, **record, "name": name,
                                "command": command, "jobs": planned})  # fmt: skip


def all_done(folder: Path, configs: Sequence[DictConfig], tracker: Tracker) -> bool:
    """Whether every job has ended well before, so that no launcher need be started."""
    jobs = [folder / str(number) for number in range(len(configs))]
    for job, config in zip(jobs, configs):
        results = read_json(job / RESULTS) or {}
        try:
            if results.get("status") != OK or results.get("config_hash") != build(config).identity():
                return False
        except ValueError:
            return False
    tracker.begin_sweep(folder)
    for job in jobs:
        tracker.deliver(job, folder)
    print(f"all {len(jobs)} jobs are done already", file=sys.stderr)
    return True


def jobs_so_far(folder: Path) -> list[Job]:
    """The jobs that have ended and those planned, by number, which sweep.json lists from now on."""
    record = {**(read_json(folder / SWEEP) or {}), "files": []}
    write_json(folder / SWEEP, {**record, "jobs": ended(folder, record["jobs"])})
    return read_jobs(folder)


def forget(folder: Path, first: int) -> None:
    """Jobs from this number on are of an earlier walk, with other data or code: a walk that was shorter has none."""
    others = [job for job in jobs_so_far(folder) if job.number >= first]
    for job in others:
        (folder / job.folder / RESULTS).unlink(missing_ok=True)
    record = read_json(folder / SWEEP) or {}
    write_json(folder / SWEEP, {**record, "jobs": record["jobs"][: len(record["jobs"]) - len(others)]})


def conclude(folder: Path, tracker: Tracker, axis: str, dial: Dial | None = None) -> int:
    """Write sweep.json, show every job, and what is found on the dial; deliver the parent run. The exit status."""
    jobs = [dial.judged(job) for job in jobs_so_far(folder)] if dial else jobs_so_far(folder)
    record = read_json(folder / SWEEP) or {}
    drawn = told_apart(folder, jobs, panels(jobs, axis))
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    record["summary"] = report.summary(folder, jobs, common)
    record["tags"] = report.best(jobs, record["summary"], drawn)
    sentence, smallest = answer(dial, jobs) if dial else ("", None)
    bundle = put_in_place(folder, smallest) if smallest else None
    if dial:
        record["tags"]["how_small"] = sentence
        if smallest or (jobs and all(job.ok for job in jobs)):  # else what an earlier walk found may still be right
            if record.get("bundle") and not smallest:
                shutil.rmtree(folder / ARTIFACT, ignore_errors=True)
            record["bundle"] = bundle and str(bundle)
    record["files"] = [os.path.relpath(file, folder) for file in report.write(folder, jobs, drawn)]
    write_json(folder / SWEEP, record)

    title = f"multirun in {folder}: {' '.join(sorted(common))}"
    if rows := record["summary"]:
        print_table(title, list(rows[0]), [[report.cell(value) for value in row.values()] for row in rows])
    for panel in drawn:
        print(panel.told)
    if dial:
        print(f"{sentence}\nbundle: {bundle or ('gone' if smallest else 'none')}")
    tracker.deliver_sweep(folder)
    shipped = [row for row in record["summary"] if not dial or (smallest and row["job"] == smallest.number)]
    if stopped := report.gated_out(shipped):  # of a search the answer alone has to pass
        of = "the smallest, job" if dial else f"{len(stopped)} of {len(jobs)} jobs:"
        print(f"gate: not passed by {of} {', '.join(map(str, stopped))}")
    unfinished = [job for job in record["jobs"] if job["status"] != OK]
    if unfinished:
        print(f"{len(jobs) - len(unfinished)} of {len(jobs)} jobs are done; the same command runs the others again")
    print(f"look next: {tracker.look_next() or folder / SWEEP}")
    return FAILED if unfinished else GATED if stopped or (dial and not smallest) else DONE


def ended(folder: Path, planned: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The jobs of sweep.json by number, with what those that ended have left; a search plans none."""
    by_folder = {
        file.parent: read_json(file) or {} for file in folder.rglob(RESULTS) if "mlartifacts" not in file.parts
    }
    listed = {job["number"]: job for job in planned}
    for job, results in by_folder.items():
        if results.keys() >= RECORDED:
            listed[results["job"]] = {
                "number": results["job"],
                "overrides": results["overrides"],
                "folder": str(job.relative_to(folder)),
                "status": results["status"],
                "config_hash": results.get("config_hash", ""),
            }
    return [listed[number] for number in sorted(listed)]


def _command_in(file: Path) -> object:
    return (read_json(file) or {}).get("command")
