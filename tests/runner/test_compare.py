"""slimrun-compare: paired differences of two runs, and what it refuses to pair."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from slimrun.evaluation.base import Reference
from slimrun.evaluation.task.multiple_choice import MultipleChoice
from slimrun.evaluation.task.perplexity import Perplexity
from slimrun.runner import compare
from slimrun.runner.config import composed
from slimrun.runner.folder import OUTPUTS, SCORES, read_outputs, write_json, write_outputs, write_scores
from slimrun.runner.job import effective

from ..evaluation.fake import FakeModel, silent

TASKS = {"perplexity": Perplexity, "multiple_choice": MultipleChoice}


def finished(folder: Path, noise: float, windows: int = 12, fingerprint: str = "same") -> Path:
    """The files of a run whose quantization moved the output head of the fake model by `noise`."""
    folder.mkdir()
    model, quantized = FakeModel(), FakeModel(noise)
    settings = {"perplexity": {"windows": windows, "window": 40}, "multiple_choice": {"limit": 12}}
    outputs, metrics = {}, {}
    for name, values in settings.items():
        task = TASKS[name](**values)
        before = task.evaluate(model, None, silent)
        after = task.evaluate(quantized, Reference(before, model.log_probs), silent)
        outputs[name] = {"float": before, "quant": after}
        metrics |= task.compare(name, before, after).metrics
    sizes = {"size/bits_per_weight": 3.5 + noise, "size/covered_share": 1.0, "size/artifact_bytes": 1_000_000,
             "size/bits_per_parameter": 8.0}  # fmt: skip
    write_outputs(folder / OUTPUTS, outputs)
    targets = {name: f"{kind.__module__}.{kind.__qualname__}" for name, kind in TASKS.items()}
    config = {
        "model": {"name": "fake"},
        "quant": {"noise": noise},
        "tracking": {"uri": folder.name},
        "task": {name: {"_target_": targets[name], **values} for name, values in settings.items()},
    }
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    write_json(
        folder / "results.json",
        {"status": "ok", "model/fingerprint": fingerprint, "compress/ratio": 2.0, **sizes, **metrics},
    )
    return folder


def slimrun_compare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *folders: Path
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["slimrun-compare", *map(str, folders)])
    with pytest.raises(SystemExit) as exit_info:
        compare.main()
    out, err = capsys.readouterr()
    return int(exit_info.value.code or 0), out, err


def test_differences_are_paired_and_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = finished(tmp_path / "a", 0.1), finished(tmp_path / "b", 0.5)
    status, out, err = slimrun_compare(monkeypatch, capsys, a, b)
    assert (status, err) == (0, "")
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert "+0.400" in lines["bits per weight"]
    losses = [-read_outputs(folder / OUTPUTS)["perplexity"]["log_probs"].mean(dtype=np.float64) for folder in (a, b)]
    assert f"{100 * np.expm1(losses[1] - losses[0]):+.4g} %" in lines["perplexity"]
    assert [cell.strip() for cell in lines["perplexity"].split("│")[-3:-1]] == ["5 %", "worse"]
    kl = [read_outputs(folder / OUTPUTS)["perplexity"]["kl"].mean(dtype=np.float64) for folder in (a, b)]
    assert f"{kl[1] - kl[0]:+.4g}" in lines["perplexity: KL to float, nats"]
    assert "multiple_choice: accuracy" in lines
    assert "quant.noise: 0.1 -> 0.5" in out
    assert "tracking" not in out


def test_outputs_without_a_float_side_are_still_read(tmp_path: Path) -> None:
    kept = read_outputs(finished(tmp_path / "a", 0.1) / OUTPUTS)
    older = {f"{task}/{name}": array for task, arrays in kept.items() for name, array in arrays.items()}
    np.savez(tmp_path / OUTPUTS, allow_pickle=False, **older)
    again = read_outputs(tmp_path / OUTPUTS)
    assert {task: arrays.keys() for task, arrays in again.items()} == {task: kept[task].keys() for task in kept}
    assert read_outputs(tmp_path / OUTPUTS, "float") == {}


def test_rounding_moves_both_runs(tmp_path: Path) -> None:
    a, b = finished(tmp_path / "a", 0.1), finished(tmp_path / "b", 0.5)
    [alone] = [score for score in compare.compared("perplexity", *map(compare.read, (a, b))).scores if score.verdict]
    assert alone.noise is not None
    write_scores(a / SCORES, [replace(alone, noise=3.0)])
    [both] = [score for score in compare.compared("perplexity", *map(compare.read, (a, b))).scores if score.verdict]
    assert both == replace(alone, noise=np.hypot(alone.noise, 3.0))


def test_a_run_does_not_differ_from_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = finished(tmp_path / "a", 0.1)
    _, out, _ = slimrun_compare(monkeypatch, capsys, a, a)
    line = next(line for line in out.splitlines() if "perplexity " in line)
    assert "+0 %" in line
    assert "inconclusive" in line, "the float model guesses"


def test_unlike_runs_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = finished(tmp_path / "a", 0.1)
    failed = tmp_path / "failed"
    failed.mkdir()
    write_json(failed / "results.json", {"status": "failed", "error": "out of memory"})
    (failed / "config.yaml").write_text("{}\n")
    damaged = finished(tmp_path / "damaged", 0.1)
    (damaged / OUTPUTS).write_bytes((damaged / OUTPUTS).read_bytes()[:-30])
    changed = finished(tmp_path / "changed", 0.1)
    results = json.loads((changed / "results.json").read_text())
    for folder, line in (
        (
            finished(tmp_path / "b", 0.1, windows=5),
            "perplexity was not measured alike: windows:12 in A, windows:5 in B",
        ),
        (finished(tmp_path / "c", 0.1, fingerprint="other"), "the runs started from different float models"),
        (failed, f"{failed} holds a run that failed: out of memory"),
        (tmp_path / "nothing", "is no output folder of a finished run"),
        (damaged, f"{damaged / OUTPUTS} cannot be read"),
    ):
        status, out, err = slimrun_compare(monkeypatch, capsys, a, folder)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert line in err

    key = "perplexity/signature"
    for folder in (a, changed):  # as if the text had been another one when both ran
        write_json(folder / "results.json", results | {key: results[key].replace("text:", "text:0")})
    status, out, err = slimrun_compare(monkeypatch, capsys, a, changed)
    assert (status, out) == (2, "")
    assert "task perplexity: its data changed since the runs" in err


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("results.json", b"[1]", "results.json is damaged: it holds no JSON object"),
        ("results.json", b'{"status"', "is no output folder of a finished run"),
        ("results.json", b"[" * 100_000, "is no output folder of a finished run"),
        ("results.json", b'{"status": "ok"}', "has no size/bits_per_weight in its results.json"),
        ("config.yaml", b"- a list", "config.yaml is not what a run writes"),
        ("config.yaml", b"a: [", "is no output folder of a finished run"),
        ("config.yaml", b"model: ${oc.env:HOME}", "config.yaml is not what a run writes"),
        ("config.yaml", b"model: 3", "is damaged ("),
        ("config.yaml", b"\xff\xfe\x00", "is no output folder of a finished run"),
        ("outputs.npz", b"PK\x05\x06" + bytes(18), "is damaged ("),
        ("outputs.npz", b"no archive", "outputs.npz cannot be read"),
    ],
)
def test_damaged_files_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: bytes,
    line: str,
) -> None:
    a, b = finished(tmp_path / "a", 0.01), finished(tmp_path / "b", 0.02)
    (a / file).write_bytes(content)
    status, _, err = slimrun_compare(monkeypatch, capsys, a, b)
    assert (status, err.count("\n")) == (2, 1)
    assert line in err


@pytest.mark.parametrize(
    "target", ["os.system", "mine.Task", "slimrun.evaluation.task.perplexity.Perplexity.x", "slimrun"]
)
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_that_a_config_file_names_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str, inside: bool
) -> None:
    a, b = finished(tmp_path / "a", 0.01), finished(tmp_path / "b", 0.02)
    config = OmegaConf.load(a / "config.yaml")
    OmegaConf.update(config, "task.perplexity.windows" if inside else "task.perplexity", {"_target_": target})
    OmegaConf.save(config, a / "config.yaml")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Task: pass\n")
    status, _, err = slimrun_compare(monkeypatch, capsys, a, b)
    assert (status, err.count("\n")) == (2, 1)
    assert f"_target_={target} is no task of slimrun" in err
    assert not (tmp_path / "imported").exists()


def test_a_task_is_made_again_from_wherever_its_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, elsewhere = finished(tmp_path / "run", 0.01), tmp_path / "elsewhere"
    for folder in (elsewhere, tmp_path / "mirror"):
        folder.mkdir()
    for name in ("fr.txt", "en.txt", "text.txt"):
        (tmp_path / name).write_text("one\ntwo\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    typed = ["model=tiny_llama", "task=[perplexity,translation,arc,gsm8k]", "task.perplexity.path='~/text.txt'",
             "task.translation.path=fr.txt", "task.translation.target_path=./en.txt",
             "task.arc.hub.id=mirror"]  # fmt: skip
    config = composed(typed)
    config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    (run / "config.yaml").write_text(effective(config))
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(elsewhere))
    read = compare.read(run)
    made = {name: compare.task_of(read, name) for name in read.config.task}
    assert made["perplexity"].texts() == ["one\ntwo\n"]
    assert made["translation"].references() == [["one"], ["two"]]
    assert made["arc"].hub.id == str(tmp_path / "mirror")
    assert made["gsm8k"].hub.id == "openai/gsm8k"
