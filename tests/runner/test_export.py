"""The group `export`: a stage of the run, refused before weights load where that can be known."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

from slimrun.ops.export import targets
from slimrun.ops.export.gguf import Gguf
from slimrun.ops.export.mindie import MindIE
from slimrun.ops.model.own import Own
from slimrun.runner import export
from slimrun.runner.config import CompositionError, ConfigError, build, checked, composed
from slimrun.runner.display import Stages
from slimrun.runner.estimate import Estimate
from slimrun.runner.experiment import Experiment
from slimrun.runner.output import check
from slimrun.runner.plan import rows
from slimrun.runner.report import run as report

TINY = ["model=tiny_llama", "task=[perplexity]", "task.perplexity.windows=2", "task.perplexity.window=32"]
BESIDE = ["calibration.samples=2", "tracking=none"]


def experiment(tmp_path: Path, *overrides: str) -> Experiment:
    return build(composed([*TINY, *BESIDE, f"cache.dir={tmp_path / 'cache'}", *overrides]))


def test_each_choice_is_a_target_of_the_same_name() -> None:
    names = {file.name.removesuffix(".yaml") for file in resources.files("slimrun.conf").joinpath("export").iterdir()}
    assert names - {"none"} == {name.replace("-", "_") for name in targets()}
    for name in names - {"none"}:
        config = composed([f"export={name}"])
        assert list(config.export) == [name]
        assert config.export[name]._target_.split(".")[-2] == name


def test_a_run_exports_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = experiment(
        tmp_path, "export=[compressed_tensors,vllm_ascend]", "model.dtype=float16", "export.vllm_ascend.shard_gb=1e-4"
    )
    with Stages() as stages:
        result = job.run(tmp_path / "run", stages)
    folders = [exported.folder for exported in result.exports]
    assert folders == [tmp_path / "run" / "export" / name for name in ("compressed_tensors", "vllm_ascend")]
    assert json.loads((folders[0] / "config.json").read_text())["quantization_config"]["format"] == "int-quantized"
    assert len(list(folders[1].glob("*.safetensors"))) > 1
    assert result.metrics["time/export_s"] > 0
    for exported in result.exports:
        export.show(exported)
    assert f"serve: vllm serve {folders[1]} --quantization ascend" in capsys.readouterr().out
    assert "## Export: vllm-ascend" in report.report(result, "slimrun")
    check(tmp_path / "run", "hydra.run.dir")  # the next run may replace them


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["export=vllm_ascend"], "export.vllm_ascend.dtype=auto keeps the model's float32, which vllm-ascend does not"),
        (
            ["export=gguf", "+model.architecture.hidden_act=gelu"],
            "export=gguf: config.json: hidden_act=gelu is not written",
        ),
        (["export=gguf"], "export=gguf: tokenizer.json has the cut none .* gguf is not written"),
        (["export=gguf", "export.gguf.dtype=int4"], "export.gguf.dtype=int4 is nothing that gguf runs; allowed: auto,"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_weights_load(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(experiment(tmp_path, *overrides))


def test_no_choice_is_one_line() -> None:
    with pytest.raises(CompositionError, match="export=onnx: no such choice; allowed: ckpt, compressed_tensors, gguf,"):
        composed(["export=onnx"])


def test_only_a_run_that_exports_is_another_one(tmp_path: Path) -> None:
    plain, none = experiment(tmp_path), experiment(tmp_path, "export=none")
    assert plain.identity() == none.identity() != experiment(tmp_path, "export=gguf").identity()


def test_the_plan_says_so_and_counts_its_disk(tmp_path: Path) -> None:
    plain, exporting = (experiment(tmp_path, *overrides) for overrides in ([], ["export=compressed_tensors"]))
    first, second = Estimate(plain, plain.check()), Estimate(exporting, exporting.check())
    assert ["export", "compressed_tensors"] in rows(second)
    assert second.disk_bytes - first.disk_bytes >= second.weights


def test_another_folder_under_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run" / "export" / "gguf").mkdir(parents=True)
    (tmp_path / "run" / "export" / "gguf" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="export/gguf holds something else than an export"):
        check(tmp_path / "run", "hydra.run.dir")


def test_a_model_that_is_not_here_yet_is_checked_by_what_is_known(tmp_path: Path) -> None:
    model = build(composed([f"cache.dir={tmp_path / 'cache'}", "tracking=none"])).model
    export.check({"gguf": Gguf()}, model, readable=True)  # its tokenizer comes with it
    with pytest.raises(ValueError, match=r"export\.mindie\.dtype=auto keeps the model's float32"):
        export.check({"mindie": MindIE()}, model, readable=True)


def test_a_bundle_that_nothing_reads_back_and_an_own_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="export=gguf reads the bundle back; allowed: compress=native, nz, none"):
        export.check({"gguf": Gguf()}, experiment(tmp_path).model, readable=False)
    with pytest.raises(ValueError, match="export=gguf needs a model of transformers; allowed: export=none"):
        export.check({"gguf": Gguf()}, Own("mine", "package.function"), readable=True)
