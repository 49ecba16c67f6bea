"""The jobs of a command line, whatever way Hydra is told of a multirun."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from slimrun.runner.jobs import Command, read

TWO = ["quant.fraction=0.02", "quant.fraction=0.05"]
PARAMS = "hydra:\n  sweeper:\n    params:\n      quant.fraction: 0.02,0.05\n"


def command(*arguments: str) -> Command:
    return read(get_args_parser().parse_intermixed_args(arguments))


@pytest.fixture
def presets(tmp_path: Path) -> list[str]:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "params.yaml").write_text(f"# @package _global_\n{PARAMS}")
    (folder / "whole.yaml").write_text(f"# @package _global_\n{PARAMS}  mode: MULTIRUN\n")
    (folder / "mode.yaml").write_text("# @package _global_\nhydra:\n  mode: MULTIRUN\n")
    (tmp_path / "mine.yaml").write_text(f"defaults:\n  - config\n  - _self_\n{PARAMS}  mode: MULTIRUN\n")
    return ["--config-dir", str(tmp_path)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "quant.fraction=0.02,0.05"],
        ["hydra.mode=MULTIRUN", "quant.fraction=0.02,0.05"],
        ["-m", "experiment=params"],
        ["experiment=params", "hydra.mode=MULTIRUN"],
        ["experiment=whole"],
        ["experiment=mode", "quant.fraction=0.02,0.05"],
        ["--config-name", "mine"],
        ["-m", "--config-name", "mine", "hydra.mode=RUN"],
    ],
    ids=" ".join,
)
def test_a_multirun_is_one_however_it_is_told(presets: list[str], arguments: list[str]) -> None:
    told = command(*presets, *arguments)
    assert told.multirun
    assert told.listed
    fractions = [[item for item in job if item.startswith("quant.fraction")] for job in told.jobs]
    assert fractions == [TWO[:1], TWO[1:]]
    assert any("0.02,0.05" in item for item in told.sweep)


def test_the_command_line_wins_over_the_sweeper(presets: list[str]) -> None:
    assert command(*presets, "experiment=whole", "quant.fraction=0.03").jobs == [
        ["quant.fraction=0.03", "experiment=whole"]
    ]


@pytest.mark.parametrize("arguments", [[], ["quant=w8a8"], ["hydra.mode=RUN"], ["experiment=params"]])
def test_one_job(presets: list[str], arguments: list[str]) -> None:
    told = command(*presets, *arguments)
    assert not told.multirun
    assert told.jobs == [[*presets[2:], *arguments]]


@pytest.mark.parametrize(
    ("glob", "choices"),
    [
        ("glob([w8*,lowbit])", ["lowbit", "w8a16", "w8a8", "w8a8_dynamic", "w8a8s"]),
        ("glob(*,exclude=[rdoq*,w8*])", ["entquant", "gptq", "lowbit", "none", "watersic"]),
    ],
)
def test_choices_of_a_group_by_pattern(glob: str, choices: list[str]) -> None:
    assert command("-m", f"quant={glob}").jobs == [[f"quant={choice}"] for choice in choices]


@pytest.mark.parametrize("flag", [["-m"], []])
def test_a_search_has_one_job_of_what_it_does_not_choose(flag: list[str]) -> None:
    told = command(*flag, "experiment=pareto_search", "calibration.samples=4")
    assert told.multirun
    assert not told.listed
    assert told.jobs == [["experiment=pareto_search", "calibration.samples=4"]]
