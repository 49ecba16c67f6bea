"""Whole runs on the random model, as a user starts them."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from slimrun.evaluation.comparison import corrected
from slimrun.runner import compare
from slimrun.runner.checks import as_typed
from slimrun.runner.config import build, composed
from slimrun.runner.display import Stages
from slimrun.runner.folder import OUTPUTS, SCORES, read_outputs, read_scores
from slimrun.runner.report.run import write_layers
from slimrun.runner.result import size_metrics
from tests.runner.console import FAST, TINY, results, slimrun, start

pytestmark = pytest.mark.usefixtures("quick_migrations")
KINDS = ("float", "quant")


def test_one_run_leaves_everything_the_contract_names(tmp_path: Path) -> None:
    status, out, err = slimrun(tmp_path, *TINY, "hydra.run.dir=run", "task.multiple_choice.limit=4",
                               "task.summarization.limit=2", "task.translation.limit=2",
                               "task.summarization.max_new_tokens=4", "task.translation.max_new_tokens=4")  # fmt: skip
    assert status == 0, err
    result = results(tmp_path)[0]
    assert result["status"] == "ok"
    assert result["compress/verified"] == 1
    expected = {
        "config_hash", "size/float_bytes", "size/int8_bytes", "size/compressed_bytes", "size/bits_per_weight",
        "size/model_float_bytes", "size/bits_per_parameter", "size/file_bytes", "size/fallback_share",
        "size/entropy_bits", "size/artifact_bytes", "compress/ratio",
        *(f"perplexity/{key}" for key in ("float", "quant", "delta_pct", "ci_low", "ci_high", "verdict", "signature")),
        "fidelity/kl_mean", "fidelity/top1_agreement",
        *(f"multiple_choice/{key}" for key in ("accuracy_float", "accuracy_quant", "flips", "signature")),
        *(f"translation/{key}_{kind}" for key in ("bleu", "chrf", "chrfpp", "ter") for kind in KINDS),
        *(f"summarization/{key}_{kind}" for key in ("rouge1", "rouge2", "rougeL", "rougeLsum") for kind in KINDS),
        "translation/signature", "summarization/signature",
        *(f"time/{stage}_s" for stage in ("load", "calibrate", "quantize", "compress", "decode", "evaluate")),
        "memory/peak_rss_bytes",
    }  # fmt: skip
    assert expected <= result.keys()

    run = tmp_path / "run"
    for name in ("report.md", "report.html", "layers.csv", "layers.png", "scores.png", "run.log", "config.yaml"):
        assert (run / name).stat().st_size > 0, name
    assert stat.S_IMODE((run / "artifact").stat().st_mode) == 0o750
    assert result["size/artifact_bytes"] == sum(file.stat().st_size for file in (run / "artifact").iterdir())
    assert "effective configuration" in (run / "run.log").read_text()
    assert out.splitlines()[-1] == f"look next: mlflow ui --backend-store-uri sqlite:///{tmp_path / 'mlflow.db'}"
    assert "bits per weight" in out

    for table in re.findall(r"<table>.*?</table>", (run / "report.html").read_text(), re.DOTALL):
        headings = re.findall(r'<th class="(text|)">', table)
        for row in re.findall(r"<tr class=.*?</tr>", table):  # a heading stands at the side of its cells
            cells = re.findall(r'<td class="(text|)"[^>]*>(.?)', row)
            assert all(kind == heading for heading, (kind, first) in zip(headings, cells, strict=True) if first != "<")

    kept = compare.read(run)  # outputs.npz and config.yaml alone give the scores again
    before = read_outputs(run / OUTPUTS, "float")
    again = corrected({name: compare.task_of(kept, name).compare(name, before[name], kept.outputs[name])
                       for name in kept.config.task})  # fmt: skip
    assert [score for report in again.values() for score in report.scores] == read_scores(run / SCORES)
    assert sum(array.nbytes for array in before["perplexity"].values()) < 8 * before["perplexity"]["log_probs"].size


def test_sizes_add_up_from_the_files(tmp_path: Path) -> None:
    from safetensors import safe_open

    assert slimrun(tmp_path, *FAST, "tracking=none", "hydra.run.dir=run", "quant.ignore=[*.q_proj]")[0] == 0
    result = results(tmp_path)[0]
    coded = scales = weights = 0
    with safe_open(tmp_path / "run/artifact/quant_model_weight_w8a8sc.safetensors", "np") as file:
        for key in file.keys():  # noqa: SIM118
            if key.endswith(".info"):
                name = key.removesuffix(".info")
                coded += sum(file.get_tensor(f"{name}.{part}").nbytes for part in ("weight", "index", "info"))
                scales += file.get_tensor(f"{name}.deq_scale").size
                weights += int(file.get_tensor(key)[-2:].prod())
    assert result["size/int8_bytes"] == weights
    assert result["size/compressed_bytes"] == coded + 4 * scales
    assert result["size/bits_per_weight"] == pytest.approx(8 * (coded + 4 * scales) / weights)
    assert result["compress/ratio"] == pytest.approx(weights / (coded + 4 * scales))


def test_a_second_run_reuses_the_baseline_and_gives_the_same_numbers(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert slimrun(tmp_path, *FAST, "tracking=none", f"hydra.run.dir={name}")[0] == 0
    index = json.loads((tmp_path / "cache" / "baselines" / "index.json").read_text())
    assert sorted(entry["kind"] for entry in index.values()) == ["float outputs", "float statistics"]
    one, two = results(tmp_path)
    varying = {key for key in one if key.startswith(("time/", "memory/"))}
    assert {key: one[key] for key in one.keys() - varying} == {key: two[key] for key in two.keys() - varying}


@pytest.mark.parametrize(("quant", "bits"), [("none", 32.0), ("w8a8", 8.0), ("rdoq_w8a8", 8.0), ("rdoq_lowbit", 8.0)])
def test_other_methods(tmp_path: Path, quant: str, bits: float) -> None:
    status, _, err = slimrun(tmp_path, *FAST, f"quant={quant}", "compress=none", "tracking=none")
    assert status == 0, err
    result = results(tmp_path)[0]
    assert result["size/bits_per_weight"] == pytest.approx(bits, abs=0.6)
    if quant == "none":
        assert result["perplexity/delta_pct"] == 0
        assert result["fidelity/kl_mean"] == 0


def test_a_second_target_reuses_what_was_measured(tmp_path: Path) -> None:
    for target in (5.0, 6.0):
        run = [*FAST, "quant=rdoq", f"quant.target_bits={target}", "quant.fallback.max_share=0.1", "tracking=none"]
        status, _, err = slimrun(tmp_path, *run, f"hydra.run.dir={target}")
        assert status == 0, err
    index = json.loads((tmp_path / "cache" / "baselines" / "index.json").read_text())
    kinds = sorted(entry["kind"] for entry in index.values())
    # of a model in three parts, with the corrections that follow from them: for both targets
    assert kinds == [*["fisher statistics"] * 4, "float outputs"]
    first, second = results(tmp_path)
    assert first["size/bits_per_weight"] < second["size/bits_per_weight"]
    assert first["size/fallback_share"] == pytest.approx(1 / 14)
    assert "input_loss" in (tmp_path / "5.0" / "layers.csv").read_text().splitlines()[0]
    assert "The ten whose inputs lose most on a grid" in (tmp_path / "5.0" / "report.md").read_text()


def test_mlflow_holds_params_metrics_tags_and_artifacts(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    assert slimrun(tmp_path, *FAST, "hydra.run.dir=run")[0] == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("slimrun")
    [run] = client.search_runs([experiment.experiment_id])
    result = results(tmp_path)[0]
    assert run.data.params["quant.fraction"] == "0.011"
    assert run.data.params["model.name"] == "tiny_llama"
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
    logged = {key: value for key, value in run.data.metrics.items() if not key.startswith("system/")}
    assert logged == pytest.approx(numbers)
    assert run.data.tags["perplexity/signature"] == result["perplexity/signature"]
    assert run.data.tags["config_hash"] == result["config_hash"]
    assert len(run.data.tags["weights.sha256"]) == 64
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert names == {
        "config.yaml", "report.md", "report.html", "layers.csv", "layers.json", "layers.png", "scores.png",
        "outputs.npz", "results.json", "samples", "samples.json", "scores.json",
    }  # fmt: skip
    data = {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
    assert data == {name: str(result[f"data/{name}"])[:36] for name in ("calibration", "perplexity")}


def test_parallel_starts_on_a_fresh_database_and_in_one_folder(tmp_path: Path) -> None:
    by_time = "hydra.run.dir=outputs/${now:%Y}"  # as in one second
    processes = [start(tmp_path, *FAST, by_time, f"seed={seed}") for seed in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    folders = sorted((tmp_path / "outputs").iterdir())
    assert [folder.name[4:] for folder in folders] == ["", "-1"]
    for folder in folders:
        [seed] = [item for item in json.loads((folder / "results.json").read_text())["overrides"] if "seed" in item]
        assert seed.replace("=", ": ") in (folder / "config.yaml").read_text()
    assert len({seed for folder in results(tmp_path) for seed in folder["overrides"] if "seed" in seed}) == 2
    store = tmp_path / "mlflow.db"  # on a busy machine it may not answer in time: then the rest waits
    assert slimrun(tmp_path, f"tracking.uri=sqlite:///{store}", "tracking.sync=true")[0] == 0
    status, _, err = slimrun(tmp_path, f"tracking.uri=sqlite:///{store}", "tracking.sync=true")
    assert (status, err) == (0, "note: 0 runs that waited are logged now, 0 still wait\n")
    with sqlite3.connect(store) as database:
        assert [row[0] for row in database.execute("select status from runs")] == ["FINISHED"] * 2


def test_a_failing_run_says_why_and_where(tmp_path: Path) -> None:
    (tmp_path / "run" / "layers.csv").mkdir(parents=True)  # found when the report is written
    status, out, err = slimrun(tmp_path, *FAST, "tracking=none", "hydra.run.dir=run")
    assert status == 1
    assert out == ""
    assert "run.log" in err.splitlines()[-1]
    assert "Traceback" not in err
    result = results(tmp_path)[0]
    assert result["status"] == "failed"
    assert "Traceback" in (tmp_path / "run" / "run.log").read_text()
    assert not list((tmp_path / "run").glob(".*.scratch"))
    assert not (tmp_path / "run" / ".lock").exists()


def test_ctrl_c_ends_cleanly(tmp_path: Path) -> None:
    """SIGTERM is the same to a run: test_sweep.py sends that one."""
    text = tmp_path / "long.txt"
    text.write_text("a text that takes minutes to score " * 6_000)
    minutes = [f"task.perplexity.path={text}", "task.perplexity.windows=9999", "task.perplexity.window=512",
               "model.architecture.hidden_size=512", "model.architecture.intermediate_size=4096"]  # fmt: skip
    process = start(tmp_path, *FAST, *minutes, "tracking=none", "hydra.run.dir=run")
    while not (tmp_path / "run" / "run.log").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "interrupted" in err.splitlines()[-1]
    assert results(tmp_path)[0]["status"] == "failed"
    assert not (tmp_path / "run" / "artifact").exists()


def test_a_stream_that_only_hardware_reads_is_written_and_said_to_be_unread(tmp_path: Path) -> None:
    vendor = tmp_path / "vendor"
    vendor.write_text(
        "#!/bin/sh\n"
        '[ $# -eq 11 ] || { echo "Please check your input params count is 11."; exit 1; }\n'
        "tiles=$(( ($1 + 7) / 8 * (($2 + 7) / 8) ))\n"
        'head -c 100 "$8" > "$9"; head -c $((8 * tiles)) /dev/zero > "${10}"\n'
        "printf '\\010\\000\\000\\000\\010\\000\\000\\000\\144\\000\\000\\000' > \"${11}\"\n"
    )
    vendor.chmod(0o700)
    arguments = [*FAST, "tracking=none", "compress=cann", "hydra.run.dir=run"]
    status, _, err = slimrun(tmp_path, *arguments, f"compress.executor={vendor}")
    assert status == 0, err
    result = results(tmp_path)[0]
    assert result["compress/verified"] == 0
    assert "nothing here decodes the container ascend" in err
    description = json.loads((tmp_path / "run/artifact/quant_model_description_w8a8sc.json").read_text())
    assert description["container"] == {"name": "ascend", "version": 1}

    status, _, err = slimrun(tmp_path, *arguments, "compress.executor=nowhere", "hydra.run.dir=other")
    assert status == 2
    assert err.count("\n") == 1
    assert "compress.executor=nowhere" in err
    assert not (tmp_path / "other").exists()


def test_messages_of_methods_name_keys_as_typed(tmp_path: Path) -> None:
    overrides = [*FAST, "quant=rdoq", "quant.target_kl=0.02", "calibration.samples=1", f"cache.dir={tmp_path}"]
    experiment = build(composed(overrides))
    expected = r"^quant\.target_kl=0.02 is measured on prompts held out: 2 or more are needed, not 1$"
    with Stages() as stages, pytest.raises(ValueError, match=expected):
        experiment.run(tmp_path, stages)
    said = (
        "target_bits=2 is out of reach (fallback.max_share, activations=float); model.ignore=x, ignore_last_linear. A"
    )
    assert as_typed("quant", experiment.quant, said) == (
        "quant.target_bits=2 is out of reach (quant.fallback.max_share, quant.activations=float); model.ignore=x, "
        "ignore_last_linear. A"
    )


def test_sizes_of_a_model_without_linears(tmp_path: Path) -> None:
    """quant=none takes any model."""
    sizes = size_metrics([], {}, {}, {}, tmp_path)
    assert sizes.metrics["compress/ratio"] == 1.0
    assert sizes.metrics["size/bits_per_weight"] == 0.0
    write_layers(tmp_path / "layers.csv", sizes.layers)
    assert (tmp_path / "layers.csv").read_text().startswith("name,shape,quantized")
