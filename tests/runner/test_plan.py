"""plan=true: what it says agrees with the run that follows, and what cannot fit is refused with the number."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from slimrun.ops.calibration.rdoq.work import Work
from slimrun.ops.errors import Unavailable
from slimrun.ops.model.fingerprint import folder_hash
from slimrun.ops.model.pretrained import Pretrained
from slimrun.runner import plan, speed
from slimrun.runner.config import ConfigError, build, composed
from slimrun.runner.display import Stages
from slimrun.runner.estimate import Estimate, facts
from slimrun.runner.forecast import AROUND, TOLD, Forecast
from slimrun.runner.plan import rows, show
from slimrun.runner.report import run as report
from slimrun.runner.workload import work_of

TINY = [
    "model=tiny_llama", "model.architecture.hidden_size=256", "model.architecture.intermediate_size=512",
    "task=[perplexity]", "task.perplexity.windows=2", "task.perplexity.window=64", "calibration.samples=2",
    "tracking=none",
]  # fmt: skip


def planned(cache: Path, *overrides: str) -> Estimate:
    experiment = build(composed([*TINY, f"cache.dir={cache}", *overrides]))
    return Estimate(experiment, experiment.check())


def run(job: Estimate, output: Path) -> dict[str, object]:
    output.mkdir()
    with Stages() as stages:
        result = job.experiment.run(output, stages)
    report.write(result, output, "", {})
    job.experiment.cache.note_finished(result.config_hash, output, facts(job.experiment, result))
    results: dict[str, object] = json.loads((output / "results.json").read_text())
    return results


@pytest.mark.parametrize("quant", ["w8a8s", "w8a16", "none"])
def test_sizes_are_those_of_the_run(tmp_path: Path, quant: str) -> None:
    before = planned(tmp_path / "cache", f"quant={quant}")
    weights, bits, artifact = before.weights, before.bits, before.artifact_bytes
    results = run(before, tmp_path / "run")
    if quant != "none":
        assert weights == results["size/int8_bytes"]
        assert bits == (pytest.approx(results["size/bits_per_weight"], rel=0.05), False)
    assert artifact == pytest.approx(results["size/artifact_bytes"], rel=0.05)


def test_a_recorded_run_tells_bits_time_memory_and_that_it_is_done(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = planned(cache)
    assert (before.done, before.seconds) == ("", [])
    assert dict(rows(before))["time"].startswith("about ")
    assert "from this machine's speed: load " in dict(rows(before))["time"]
    assert "float baseline to compute: perplexity" in dict(rows(before))["evaluate"]
    results = run(before, tmp_path / "run")

    same = planned(cache)
    assert same.done == str(tmp_path / "run")
    assert dict(rows(before))["decides"].startswith("not known: no run of this model")
    told = "perplexity: too few to say (2 items; 12 are the least)"
    assert dict(rows(same))["decides"] == told
    other = planned(cache, "model.architecture.num_hidden_layers=1")
    assert dict(rows(other))["decides"] == f"{told} (as another model's run told)"
    more = planned(cache, "task=[perplexity,perplexity_zh]")
    assert dict(rows(more))["decides"] == f"{told}\nperplexity_zh: not known: no run with it is recorded"
    assert same.bits == (results["size/bits_per_weight"], True)
    assert same.memory == (results["memory/peak_rss_bytes"], True)
    assert same.seconds == [pytest.approx(sum(v for k, v in results.items() if k.startswith("time/")))]  # type: ignore[misc]
    assert "float baselines cached" in dict(rows(same))["evaluate"]

    knob, method, protocol = (
        planned(cache, *changes) for changes in (["quant.fraction=0.1"], ["quant=w8a16"], ["task.perplexity.windows=1"])
    )
    assert (knob.done, knob.bits[1], knob.seconds) == ("", False, same.seconds)
    assert "with other methods" in dict(rows(method))["time"]
    assert protocol.seconds == []

    (tmp_path / "run" / "results.json").unlink()
    assert planned(cache).done == ""


def test_what_does_not_fit_is_refused_with_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = planned(tmp_path / "cache")
    monkeypatch.setattr(plan, "free_memory", lambda: 600_000_000)
    with pytest.raises(ConfigError, match=r"needs 62\d\.\d MB of main memory at least, 600\.0 MB are free"):
        show([([], job)], tmp_path, multirun=False)

    monkeypatch.undo()
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(free=job.disk_bytes))
    show([([], job)], tmp_path, multirun=False)
    with pytest.raises(ConfigError, match=r"needs \d\.\d MB of disk, \d\.\d MB are free"):
        show([([], job)] * 2, tmp_path, multirun=True)
    with pytest.raises(ConfigError, match=r"of disk"):
        show([([], job)], tmp_path, multirun=True, trials=2)
    assert re.search(r"a search of 2 such jobs: \d+ s one after the other, ", capsys.readouterr().out)


def test_a_sweep_says_which_jobs_are_done_and_which_cannot_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    run(planned(cache, "quant.fraction=0.02"), tmp_path / "run")
    capsys.readouterr()
    jobs: list[plan.Job] = [([f"quant.fraction={f}"], planned(cache, f"quant.fraction={f}")) for f in (0.02, 0.05)]
    show(jobs, tmp_path, multirun=True)
    out = capsys.readouterr().out
    assert "1 done, 1 to run" in out
    assert [line for line in out.splitlines() if "fraction=0.02" in line and str(tmp_path / "run") in line]
    with pytest.raises(ConfigError, match=r"job 2 \(fraction=0\.5\): out of range"):
        show([*jobs, (["quant.fraction=0.5"], ConfigError("out of range"))], tmp_path, multirun=True)


def test_a_plan_imports_neither_transformers_nor_the_model(tmp_path: Path) -> None:
    """They take seconds; the outline of a model seen once is in the cache."""
    program = (
        "import sys; from slimrun.runner import main\n"
        f"sys.argv = ['slimrun', 'plan=true', 'cache.dir={tmp_path / 'cache'}', *{TINY!r}]\n"
        "try: main.main()\n"
        "except SystemExit as end: print('exit', end.code, 'transformers' in sys.modules, 'mlflow' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for imported in (True, False):
        out = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout
        assert out.splitlines()[-1] == f"exit 0 {imported} False"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_damaged_outline_is_measured_anew(tmp_path: Path) -> None:
    expected = planned(tmp_path / "cache").outline
    [file] = (tmp_path / "cache" / "outlines").iterdir()
    for content in ("", "[]", '{"linears": {"a": 1}}'):
        file.write_text(content)
        assert planned(tmp_path / "cache").outline == expected
    assert json.loads(file.read_text())["parameters"] == expected.parameters


def test_the_hash_of_a_folder_follows_its_content(tmp_path: Path, tiny_folder: Path) -> None:
    cache = tmp_path / "cache"
    assert folder_hash(tiny_folder, cache, read=False) is None
    first = folder_hash(tiny_folder, cache)
    assert folder_hash(tiny_folder, cache, read=False) == first
    config = tiny_folder / "config.json"
    text = config.read_text()
    config.write_text(text + " ")
    assert folder_hash(tiny_folder, cache, read=False) is None
    assert folder_hash(tiny_folder, cache) != first
    config.write_text(text)
    assert folder_hash(tiny_folder, cache) == first


def test_the_outline_counts_tied_weights_once(tiny_folder: Path, tmp_path: Path) -> None:
    own = [*TINY[3:], "model=hf", f"model.path={tiny_folder}", f"cache.dir={tmp_path / 'cache'}"]
    experiment = build(composed(own))
    outline = experiment.check()
    stored = (tiny_folder / "model.safetensors").stat().st_size
    assert outline.float_bytes == pytest.approx(stored, rel=0.02)
    (tiny_folder / "model.safetensors").unlink()
    with pytest.raises(Unavailable, match="has no weights"):
        experiment.check()


def test_a_config_alone_is_planned(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in tiny_folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    own = [*TINY[3:], "model=hf", f"model.path={tiny_folder}", f"cache.dir={tmp_path / 'cache'}", "plan=true"]
    experiment = build(composed(own))
    job = Estimate(experiment, experiment.check())
    told = dict(rows(job))
    assert "has no weights" in told["notes"]
    assert told["time"].startswith("about ")
    assert job.weights > 0
    show([([], job)], tmp_path, multirun=False)
    monkeypatch.delattr(Pretrained, "config")  # which takes seconds, and is not asked for again
    again = build(composed(own))
    assert Estimate(again, again.check()).forecast.keys() == job.forecast.keys()


def test_memory_follows_the_bound(tmp_path: Path) -> None:
    whole, bounded = (planned(tmp_path / "cache", *bound) for bound in ([], ["device.max_memory.cpu=100KB"]))
    assert bounded.memory[0] == bounded.least_memory + 100_000
    assert whole.memory[0] > bounded.memory[0]


def test_what_memory_has_no_room_for_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "product", lambda *_: 1.0)
    monkeypatch.setattr(Forecast, "_read", lambda _: 1.0)
    own = ["task=[perplexity,translation]", "task.translation.limit=3", "task.translation.max_new_tokens=5",
           "task.translation.batch=2"]  # fmt: skip
    for tasks, steps in (own[:0], 0), (own, 10):
        cache = tmp_path / f"cache{steps}"
        whole, bounded = (planned(cache, *tasks, *bound) for bound in ([], ["device.max_memory.cpu=100KB"]))
        walks = TOLD + len(whole.experiment.task) + steps
        of_one = TOLD * AROUND * len(whole.outline.linears)
        more = 2 * of_one + walks * (whole.outline.float_bytes + whole.weights)
        assert bounded.forecast["evaluate"] - whole.forecast["evaluate"] == pytest.approx(more)


def test_coding_what_stays_float_takes_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "coding_numbers", lambda codec, dtype: (1.0 if codec.floats else 0.0, 0.5))
    monkeypatch.setattr(speed, "disk", lambda _: (0.0, 0.0))
    job = planned(tmp_path / "cache")
    floats = 4 * (job.outline.parameters - job.weights)
    assert job.forecast["write"] == pytest.approx(floats)
    assert job.forecast["decode"] > floats / 2
    assert planned(tmp_path / "cache", "compress.floats=false").forecast["write"] == 0


def test_a_counting_model_reads_what_the_tasks_give(tmp_path: Path) -> None:
    job = planned(tmp_path / "cache", "task=[perplexity,translation]", "task.translation.limit=3",
                  "task.translation.max_new_tokens=5", "task.translation.batch=2")  # fmt: skip
    reader = job.experiment.model.reader()
    assert work_of(job.experiment.task["perplexity"], reader).read == [64, 64]
    work = work_of(job.experiment.task["translation"], reader)
    assert work.written == [2] * 10  # a batch of one is filled up


def test_rdoq_is_forecast_by_what_it_does(tmp_path: Path) -> None:
    work = Work({"a.q": (4, 2), "a.k": (4, 2), "a.down": (2, 8)}, tokens=10, measured_tokens=5, samples=3)
    assert work.products == 2 * 32 * 3 * 25 + 3 * 2 * (16 + 16 + 128)
    assert (work.factors, work.moments, work.inputs) == (8 + 512, 4 + 64, [2, 8])
    assert (work.passes, work.states, work.roundings) == (75, 75 * (6 + 6 + 10), 3)
    assert work.conversions == 2 * 32 * (1 + 2 + 3)  # statistics, a rounding beside the exact weights, three samples
    assert Work({"a": (4096, 4096)}, tokens=10).roundings == 1.125  # of some rows, and then of all
    forecast = planned(tmp_path / "cache", "quant=rdoq").forecast
    assert (
        forecast["quantize"] > planned(tmp_path / "cache", "quant=rdoq", "quant.tune_rate=0").forecast["quantize"] > 0
    )
    assert planned(tmp_path / "cache", "quant=rdoq").scratch_bytes > planned(tmp_path / "cache").scratch_bytes > 0
    with pytest.raises(ValueError, match="as many roundings"):
        _ = planned(tmp_path / "cache", "quant=rdoq", "quant.target_kl=0.1").forecast
