"""Bad input: one line, status 2, nothing written. What `plan=true` shows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.runner.console import Console

SHORT = ["model=tiny_llama", "model.architecture.max_position_embeddings=512"]
TINY = ["model=tiny_llama", "tracking=none", "task=[perplexity]"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["quant.fraction=0.5"], "quant.fraction=0.5 is out of range; allowed: 0.01 to 0.1"),
        (["quant.fraction=abc"], "quant.fraction=abc: expected a number"),
        (["+quant.fracton=0.02"], "quant.fracton: no such key; did you mean quant.fraction?"),
        (["quant.fracton=0.02"], "quant.fracton: no such key; did you mean quant.fraction?"),
        (
            ["quant=nope"],
            "quant=nope: no such choice; "
            "allowed: entquant, gptq, lowbit, none, rdoq, rdoq_data_free, rdoq_lowbit, rdoq_w8a16, rdoq_w8a8, w8a16, "
            "w8a8, w8a8_dynamic, w8a8s, watersic",
        ),
        (["quant=rdoq_lowbit", "quant.grid.fraction=0.5"], "quant.grid.fraction=0.5 is out of range; allowed: 0.01 to"),
        (["quant=rdoq_w8a8", "quant.grid.fraction=0.5"], "quant.grid.fraction: no such key"),
        (
            ["quant=rdoq_w8a8", "quant.target_bits=4"],
            "quant.target_bits and quant.grid both say how large the result may be",
        ),
        (["quant=rdoq", "quant.fallback.max_share=2"], "quant.fallback.max_share=2.0 is out of range; allowed:"),
        (
            ["quant=rdoq", "quant.fallback.inputs=[float,dynamic]"],
            "quant.fallback.inputs=[float,dynamic] is no order to try; allowed: [float], [dynamic], [dynamic,float]",
        ),
        (
            ["quant=rdoq", "quant.fallback.inputs=dynamic"],
            "quant.fallback.inputs=dynamic: expected a list of texts",
        ),
        (["quant=rdoq", "quant.fallback.share=0.1"], "quant.fallback.share: no such key; did you mean quant.fallback"),
        (["quant=rdoq", "quant.grid=5"], "quant.grid=5: expected null or keys with their _target_"),
        (["task=[perplexty]"], "task=perplexty: no such choice; allowed: arc, boolq"),
        (["nonsense=1"], "nonsense: no such key"),
        (
            ["model.path=DIR"],
            "model.path: this choice has no such key; model=chatglm2_6b, hf, llama2_7b, ",
        ),
        (
            ["quant=rdoq", "quant.fraction=0.02"],
            "this choice has no such key; quant=lowbit, w8a8s have it",
        ),
        (["framework.weights=ckpt"], "this choice has no such key; framework=mindspore has it"),
        (
            [*SHORT, "calibration.length=600"],
            "calibration.length=600 is out of range; allowed: 1 to 512, the",
        ),
        (
            [*SHORT, "task=[multiple_choice]", "task.multiple_choice.data=mmlu"],
            "task.multiple_choice.prompt: 20 of 200 are too long, the longest has 954 tokens, the model's context 512",
        ),
        (
            [*SHORT, "task=[multiple_choice]", "task.multiple_choice.data=mmlu"],
            "with task.multiple_choice.path=FILE, or task.multiple_choice.too_long=cut",
        ),
        (["+sede=1"], "sede: no such key; did you mean seed?"),
        (["seed=one"], "seed=one: expected a whole number"),
        (["quant"], "quant: not an override; write key=value"),
        (
            ["calibration.prompts=[中国的首都在哪里？, 请做一首诗歌：]"],
            'and these quotes of the shell; write \'calibration.prompts=["中国的首都在哪里？","请做一首诗歌："]\'',
        ),
        (["calibration.path=我的 文本.txt"], "write 'calibration.path=\"我的 文本.txt\"'"),
        (
            ["calibration.prompts=[a"],
            'a list ends with "]"; one with spaces is one word only in quotes: \'calibration.prompts=["..."',
        ),
        (["model=hf model.path=DIR"], "several overrides in one word; write them apart: model=hf model.path=DIR"),
        (["quant.fallback_level=500"], "quant.fallback_level=500 leaves nothing to quantize: the method covers 14"),
        (
            ["quant.ignore=[model.layers.0.self_attn.qproj]"],
            "quant.ignore=[model.layers.0.self_attn.qproj] matches no linear layer of the model; "
            "near it: model.layers.0.self_attn.q_proj",
        ),
        (["model=hf", "model.path=/does/not/exist"], "model.path=/does/not/exist: no such folder"),
        (["model=hf"], "model.path=null names no model"),
        (["model.dtype=int4"], "model.dtype=int4 is not known; allowed: auto, float32"),
        (["device=npu"], "device=npu needs the package torch_npu: install CANN"),
        (["calibration.samples=0"], "calibration.samples=0 is out of range; allowed: 1 or more"),
        (["quant.samples=0"], "quant.samples=0 is out of range; allowed: 1 or more"),
        (["quant=rdoq_w8a8", "quant.grid.samples=5"], "quant.grid.samples=5 has no effect; allowed: quant.samples"),
        (["calibration.path=missing.txt"], "missing.txt"),
        (["compress.tile_size=5000"], "compress.tile_size=5000 is out of range; allowed: powers of two"),
        (["cache.max_gb=-1"], "cache.max_gb=-1.0 is out of range"),
        (["task.perplexity.windows=0"], "task.perplexity.windows=0"),
        (["task.perplexity.path=missing.txt"], "missing.txt"),
        (["-m", "quant.fraction=0.02,abc"], "quant.fraction=abc: expected a number"),
        (["-m", "quant=w8a8s,nope"], "quant=nope: no such choice"),
        (["-m", "hydra/launcher=nope"], "hydra/launcher=nope: no such choice; allowed: basic"),
        (
            ["-m", "quant.fraction=interval(0.011,0.02)"],
            "quant.fraction=interval(0.011,0.02): only a search draws from",
        ),
        (["quant.fraction=interval(0.011,0.02)"], "quant.fraction=interval(0.011,0.02)' requires --multirun"),
        (["quant.fraction=0.02,0.05"], "quant.fraction=0.02,0.05: several values are several jobs, add -m"),
        (["-m", "quant=glob(nope*)"], "quant=glob(nope*) matches no choice; allowed: entquant, gptq, lowbit"),
        (["-m", "quant.fraction=glob(*)"], "quant.fraction=glob(*) matches no choice; quant.fraction is no group"),
        (["quant.fraction=${nope.nope}"], "quant.fraction: Interpolation key 'nope.nope' not found"),
        (["quant.ignore=[${nope}]"], "quant.ignore[0]: Interpolation key 'nope' not found"),
        (["seed=${nope}"], "seed: Interpolation key 'nope' not found"),
        (["seed=???"], "seed: Missing mandatory value"),
        (["tracking.experiment=${oc.env:NOWHERE}"], "tracking.experiment"),
        (["hydra.run.dir=${nope}"], "hydra.run.dir: Interpolation key 'nope' not found"),
        (["-m", "hydra.sweep.dir=${nope}"], "hydra.sweep.dir: Interpolation key 'nope' not found"),
        (["-m", "quant.fraction=${nope}"], "quant.fraction: Interpolation key 'nope' not found"),
        (["task=null"], "task=null: expected a choice of this group, e.g. task=NAME"),
        (["quant=3"], "quant=3: expected a choice of this group, e.g. quant=NAME"),
        (["-m", "quant=null"], "quant=null: expected a choice of this group"),
        (["~quant"], "quant: expected a choice of this group"),
        (["~tracking"], "tracking: expected a choice of this group, e.g. tracking=NAME"),
        (["~cache"], "cache: expected its keys, e.g. cache.KEY=VALUE"),
        (["~cache.dir"], "cache.dir is missing; allowed: text"),
        (["gate="], "gate=: names no file; a policy is a YAML file such as"),
        (["calibration.path="], "calibration.path= names no file; allowed: a file, or null for the pinned texts"),
        (["calibration.prompts=[]"], "calibration.prompts=[] holds no prompt; allowed: one or more, or null"),
        (["calibration.prompts=[a,[b]]"], "calibration.prompts=[a,[b]]: expected null or a list of texts, e.g. [a,b]"),
        (["calibration.path=true"], "calibration.path=true: expected null or text"),
        (["cache.dir=''"], "cache.dir= names no folder"),
        (["hydra.run.dir="], "hydra.run.dir= names no folder; choose one with hydra.run.dir=DIR"),
        (["-m", "hydra.sweep.dir=", "seed=1,2"], "hydra.sweep.dir= names no folder"),
        (["-m", "hydra.sweep.subdir=same", "seed=1,2"], "hydra.sweep.subdir=same is the folder of several jobs"),
        (
            ["-m", "hydra.sweep.subdir=${quant.observer}", "seed=1,2"],
            "hydra.sweep.subdir=auto is the folder of",
        ),
        (["-m", "experiment=how_small", "hydra.sweep.subdir=same"], "hydra.sweep.subdir=same is the folder of several"),
        (["-m", "quant.fraction=range(1,0)"], "quant.fraction=range(1,0) names no value, so there is no job"),
        (["hydra.run.dir=/proc/x"], "hydra.run.dir=/proc/x cannot be made (No such file or directory); choose another"),
        ([f"hydra.run.dir={'a' * 300}"], "cannot be made (File name too long); choose another"),
        (["seed=99999999999999999999999"], "seed=99999999999999999999999 is out of range; allowed: 0 to 92233720368"),
        (["seed=-1"], "seed=-1 is out of range"),
        (["device.max_memory.cpu=[4GiB]"], "device.max_memory={cpu:[4GiB]}: expected keys with null or text"),
        (["device=cuda", "device.max_memory.cpu=4GiB"], "a new one is added with +, +device.max_memory.cpu=4GiB"),
        (["quant=rdoq", "quant.grid={}"], "quant.grid={}: expected null or keys with their _target_"),
        (["quant.ignore={}"], "quant.ignore={}: its key holds another kind of value"),
        (["quant=[w8a8s,rdoq]"], "several are several jobs: -m quant=w8a8s,rdoq"),
        (["task.perplexity.windows=null"], "task.perplexity.windows=null: expected a whole number"),
        (["task.translation.limit=3"], "translation is not chosen; add it: task=[perplexity,translation]"),
        (["+task.translation.limit=3"], "translation is not chosen; add it: task=[perplexity,translation]"),
        (["how_small.margin=2"], "how_small.margin: no such key; a search for the smallest size is asked for by exper"),
        (["how_small=true"], "how_small: expected null; a search for the smallest size is asked for by experiment=how"),
        (["hydra.sweeper.params={a:1}"], "hydra.sweeper.params"),
        (["--config-dir", "nowhere"], "--config-dir=nowhere: no such folder"),
        (["--config-dir", "nowhere", "--cfg", "job"], "--config-dir=nowhere: no such folder"),
        (["--config-name", "nope"], "nope: no such choice"),
        (
            ["-m", "--cfg", "job"],
            "Only one of --run, --multirun, --cfg, --info and --shell_completion can be specified",
        ),
        (["-m", "hydra/sweeper=optuna"], "sweep.objectives=[]: hydra.sweeper.direction asks for 1"),
        (
            ["sweep.objectives=[bleu]"],
            "sweep.objectives=[bleu]: no result of this run; allowed: perplexity/..., size/...",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_status_2_and_no_file(slimrun: Console, arguments: list[str], line: str) -> None:
    status, out, err = slimrun(*TINY, *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("slimrun: ")
    assert line in err
    assert err.count("\n") == 1
    assert list(slimrun.folder.iterdir()) == []


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(slimrun: Console) -> None:
    status, _, err = slimrun(*TINY, "device=cuda")
    assert status == 2
    assert "device=cuda: torch finds no such device here: install a driver and a CUDA build of torch" in err


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"one\n\ntwo\n", "line 2"),
        ("grüße\n".encode("latin-1"), "UTF-8"),
        (b"", "empty"),
        (b'{"txt": "a"}\n', "text"),
    ],
)
def test_calibration_files(slimrun: Console, tmp_path: Path, content: bytes, line: str) -> None:
    file = tmp_path / ("prompts.jsonl" if content.startswith(b"{") else "prompts.txt")
    file.write_bytes(content)
    status, _, err = slimrun(*TINY, f"calibration.path={file}")
    assert status == 2
    assert f"calibration.path={file}" in err
    assert line in err
    assert err.count("\n") == 1
    assert list(slimrun.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["task.perplexity.window=600"], "task.perplexity.window=600 is out of range; allowed: 2 to 512, the model's"),
        (["calibration.length=600"], "calibration.length=600 is out of range; allowed: 1 to 512, the"),
        (
            ["task=[multiple_choice]", "task.multiple_choice.data=mmlu"],
            "task.multiple_choice.prompt: 20 of 200 are too long, the longest has ",
        ),
        (["task=[summarization]"], "task.summarization.prompt: 60 of 60 are too long, the longest has "),
        (["task=[translation]", "task.translation.limit=1", "task.translation.max_new_tokens=400"],
         "task.translation.max_new_tokens=400 is out of range; allowed: 1 to "),
        (["task=[translation]", "model.architecture.vocab_size=100"], "the tokenizer has 259 tokens, the model embed"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("plan", [[], ["plan=true"]], ids=["run", "plan"])
def test_what_does_not_fit_is_seen_before_anything_loads(
    slimrun: Console, plan: list[str], arguments: list[str], line: str
) -> None:
    context = "model.architecture.max_position_embeddings=512"
    status, _, err = slimrun("model=tiny_llama", context, "tracking=none", *arguments, *plan)
    assert status == 2
    assert line in err
    assert err.count("\n") == 1
    assert list(slimrun.folder.iterdir()) == []


def test_a_plan_says_what_is_fewer_than_asked_for(slimrun: Console, tmp_path: Path) -> None:
    (tmp_path / "own [bold].txt").write_text("One prompt of a few words, enough for two windows.\n")
    own = f"='{tmp_path / 'own [bold].txt'}'"
    status, out, _ = slimrun(*TINY, "plan=true", f"calibration.path{own}", f"task.perplexity.path{own}",
                             "task.perplexity.window=20", "task.perplexity.windows=32")  # fmt: skip
    assert status == 0
    assert "own [bold].txt" in out
    assert "calibration.samples=16 asked for, the text gives 1" in out
    assert "task.perplexity.windows=32 asked for, the text gives 2" in out


def test_truncated_weights_are_seen_before_anything_loads(slimrun: Console, tiny_folder: Path) -> None:
    weights = tiny_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    status, _, err = slimrun("model=hf", f"model.path={tiny_folder}", "tracking=none")
    assert status == 2
    assert "model.safetensors is truncated or damaged" in err
    assert list(slimrun.folder.iterdir()) == []


def test_output_folder_that_cannot_be_written(
    slimrun: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write anywhere: as another user, the answer of the system is this one
        monkeypatch.setattr("os.access", lambda path, mode: not str(path).startswith(str(locked)))
    status, _, err = slimrun(*TINY, f"hydra.run.dir={locked}/run")
    assert status == 2
    assert f"{locked} cannot be written" in err
    assert list(locked.iterdir()) == []


def test_what_is_in_the_way_of_the_artifact_is_named_before_work(slimrun: Console) -> None:
    (slimrun.folder / "run").mkdir()
    (slimrun.folder / "run" / "artifact").write_text("mine")
    for plan in ("plan=true", "plan=false"):
        status, _, err = slimrun(*TINY, "hydra.run.dir=run", plan)
        assert status == 2
        assert err.endswith("run/artifact is a file; move it, or choose another with hydra.run.dir=DIR\n")
        assert err.count("\n") == 1
    assert [path.name for path in (slimrun.folder / "run").iterdir()] == ["artifact"]
