"""Hydra's view of `experiment=how_small`: a sweeper whose next job follows from what the jobs before it lost.

Hydra imports it in every program, those of others too, so what it needs of ours is imported when it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class HowSmallSweeper(Sweeper):
    """Runs job after job until the smallest whose verdict holds is known."""

    def __init__(self, n_trials: int) -> None:
        self.n_trials = n_trials

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra gives what the jobs need."""
        self.config = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the jobs."""
        from slimrun.runner.how_small import dial_of
        from slimrun.runner.sweep import forget, jobs_so_far

        assert self.config is not None
        dial, folder = dial_of(self.config), Path(self.config.hydra.sweep.dir)
        results: list[Any] = []
        for number in range(self.n_trials if dial else 0):
            assert dial is not None
            done = jobs_so_far(folder)[:number]
            override = dial.next_override(done, self.n_trials)
            if override is None:
                break
            print(f"how_small: {dial.so_far(done)}next is {override}", file=sys.stderr)
            results.append(self.launcher.launch([[*arguments, override]], initial_job_idx=number))
        forget(folder, len(results))
        return results
