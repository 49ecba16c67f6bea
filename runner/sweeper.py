"""Hydra's view of `experiment=how_small`: a sweeper whose next job follows from what the jobs before it lost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from slimrun.runner.how_small import Dial, dial_of
from slimrun.runner.report.pareto import Job
from slimrun.runner.sweep import jobs_so_far


class HowSmallSweeper(Sweeper):
    """Runs job after job until the smallest whose verdict holds is known."""

    def __init__(self, n_trials: int) -> None:
        self.n_trials = n_trials

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra gives what the jobs need."""
        self.dial = dial_of(config)
        self.folder = Path(config.hydra.sweep.dir)
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the jobs."""
        results: list[Any] = []
        for number in range(self.n_trials):
            done = jobs_so_far(self.folder)[:number]
            override = self.dial.next_override(done) if self.dial else None
            if self.dial is None or override is None:
                break
            print(f"how_small: {_how(self.dial, done)}next is {override}", file=sys.stderr)
            results.append(self.launcher.launch([[*arguments, override]], initial_job_idx=number))
        return results


def _how(dial: Dial, done: Sequence[Job]) -> str:
    return f"{dial.setting(done[-1])} is {dial.score(done[-1]).verdict}; " if done else ""
