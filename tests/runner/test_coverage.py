"""How much of a model the sizes are about, said first where it is less than half."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from slimrun.runner.config import build, composed
from slimrun.runner.display import Stages
from slimrun.runner.estimate import Estimate
from slimrun.runner.plan import rows
from slimrun.runner.report import run as report
from slimrun.runner.report.table import sizes
from tests.framework.architectures import BASE, MIXTURES

SMALL = ["task=[perplexity]", "task.perplexity.windows=1", "task.perplexity.window=32", "calibration.samples=1"]


@pytest.mark.parametrize("kind", ["jetmoe"])
def test_a_mixture_says_first_which_share_its_sizes_are_about(kind: str, tmp_path: Path) -> None:
    settings = {"model_type": kind, **BASE, **MIXTURES[kind]}
    architecture = [f"++model.architecture.{name}={value}" for name, value in settings.items()]
    experiment = build(
        composed(["model=tiny_llama", *architecture, *SMALL, "tracking=none", f"cache.dir={tmp_path / 'cache'}"])
    )
    outline = experiment.check()
    job = Estimate(experiment, outline)
    with Stages() as stages:
        result = experiment.run(tmp_path, stages, outline)
    linears = sum(n * k for n, k in outline.linears.values())
    share = result.metrics["size/int8_bytes"] / (linears + outline.experts)  # type: ignore[operator]
    assert result.metrics["size/covered_share"] == pytest.approx(share)
    assert share < 0.5
    assert result.warnings[0].startswith(f"the method covers {share:.1%} of the weights of linears and experts")
    assert f"{outline.experts:,} weights of experts" in result.warnings[0]
    assert dict(rows(job))["weights covered"].endswith(f"{share:.1%} of those of linears and experts")
    assert ["share of weights covered", f"{share:.1%}"] in sizes(result.metrics).rows
    report.write(result, tmp_path, "", {})
    assert f"\nnote: {result.warnings[0]}\n" in (tmp_path / "report.md").read_text()
    table = list(csv.DictReader((tmp_path / "layers.csv").open()))
    routers = [row for row in table if "router" in row["name"]]
    assert len(routers) == 4
    assert all(row["quantized"] == "False" and "it stays float" in row["note"] for row in routers)
    assert json.loads((tmp_path / "results.json").read_text())["size/covered_share"] == pytest.approx(share)
