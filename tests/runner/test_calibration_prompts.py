"""How many calibration prompts a run takes: as many as its method wants, unless it is told otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import slimrun
from slimrun.runner.config import build, composed

METHODS = sorted(file.stem for file in (Path(str(slimrun.__file__)).parents[1] / "conf" / "quant").glob("*.yaml"))


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        ([], 16),
        (["quant=none"], 16),
        (["quant=rdoq"], 24),
        (["quant=rdoq_w8a8"], 24),
        (["quant=rdoq", "quant.samples=7"], 7),
        (["quant=rdoq", "calibration.samples=4"], 4),
    ],
)
def test_a_method_says_how_many_it_wants(overrides: list[str], count: int) -> None:
    assert len(build(composed(overrides)).calibration.texts()) == count


@pytest.mark.parametrize("method", METHODS)
def test_a_choice_of_a_method_changes_nothing_else(method: str) -> None:
    default, other = (OmegaConf.to_container(composed(given)) for given in ([], [f"quant={method}"]))
    assert isinstance(default, dict)
    assert isinstance(other, dict)
    assert default.pop("quant") != other.pop("quant") or method == "w8a8s"
    assert default == other
