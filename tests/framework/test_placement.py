"""Models over several devices: the same numbers as on one, and the plan for cards that are not here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from slimrun.ops import bundle
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.compress.native import Native
from slimrun.ops.errors import Unavailable
from slimrun.ops.framework.base import Device, size_of
from slimrun.ops.framework.pytorch import PyTorch, TorchModel
from slimrun.ops.framework.pytorch.device import check_device
from slimrun.ops.framework.pytorch.placement import find_device_map
from slimrun.ops.model.base import Model
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.model.random import Random
from slimrun.ops.model.skeleton import skeleton
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.runner.config import build, composed
from tests.conftest import ARCHITECTURE, CPU, TEXTS, tiny


def write_llama(folder: Path, **changes: object) -> Path:
    model = tiny(**{"num_hidden_layers": 4} | changes)
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def answers(model: TorchModel) -> tuple[object, ...]:
    prompts = [model.encode("hi there"), model.encode("x")]
    scores = [row.tolist() for row in model.continuations(prompts[0], prompts)]
    return model.logits_checksum(), model.generate(prompts, 4), scores


def run(model: Model, device: Device, quantizer: Quantizer, artifact: Path) -> tuple[list[object], list[object]]:
    """(everything that has to be equal on every device, where the modules were: float and read back)."""
    framework = PyTorch()
    loaded = framework.load(model.open(artifact.parent), device)
    compared: list[object] = [loaded.fingerprint, *answers(loaded), loaded.tensors()]
    framework.calibrator(loaded, quantizer, TEXTS, 32).run()
    tensors = loaded.tensors()
    coded = Compressor(Native()).run({name: tensors[f"{name}.weight"].numpy() for name in loaded.quantized()})
    bundle.write(artifact, tensors, coded, quantizer.quant_type, Native(), loaded.save_description)
    bundle.verify(artifact, tensors)
    restored = framework.restore(artifact, device, model.trust_remote_code)
    assert restored.logits_checksum() == loaded.logits_checksum()
    compared += [tensors, *answers(restored), restored.tensors()]
    return compared, [getattr(part.module, "hf_device_map", None) for part in (loaded, restored)]


def assert_same(expected: list[object], actual: list[object]) -> None:
    for left, right in zip(expected, actual, strict=True):
        if isinstance(left, dict):
            assert isinstance(right, dict)
            assert left.keys() == right.keys()
            for key, tensor in left.items():
                assert tensor.dtype == right[key].dtype
                assert torch.equal(tensor, right[key]), key
        else:
            assert left == right


@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no Python backends",
)
def test_two_pretend_cards_give_what_the_cpu_gives(tmp_path: Path) -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "pretend" / "two_cards.py")],
        env=os.environ | {"PYTHONPATH": f"{here.parents[1]}{os.pathsep}{here / 'pretend'}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "glm W8A8S auto 0 1",
        "llama W8A8S sequential 0 1 cpu",
        "llama W8A8S None cpu",
        "llama RDOQ sequential 0 1 cpu",
        "llama RDOQ None 0 cpu",
    ]


class TestPretendCards:
    """Plans for weights on the meta device: nothing here needs a card."""

    def plan(self, device_map: str | None, memory: dict[str, str], **changes: object) -> dict[str, int | str]:
        shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
        model = skeleton(LlamaConfig(**shape | changes, num_attention_heads=32, dtype="float16"))
        model.tie_weights()
        return find_device_map(model, Device("cards", "npu", device_map=device_map, max_memory=memory))

    def test_llama2_7b_over_two_cards_memory_and_disk(self) -> None:
        plan = self.plan("sequential", {"0": "5GiB", "1": "4GiB"})
        assert list(dict.fromkeys(plan.values())) == [0, 1, "cpu"]
        layers = [plan[f"model.layers.{i}"] for i in range(32)]  # whole layers, in order
        order = [0, 1, "cpu"]
        assert layers == sorted(layers, key=order.index)
        assert plan["model.embed_tokens"] == 0

    def test_balanced_cards_hold_about_the_same(self) -> None:
        plan = self.plan("auto", {"0": "40GiB", "1": "40GiB"})
        assert set(plan.values()) == {0, 1}
        counts = [sum(plan[f"model.layers.{i}"] == card for i in range(32)) for card in (0, 1)]
        assert abs(counts[0] - counts[1]) <= 4

    def test_one_card_holds_all_of_it_or_what_fits(self) -> None:
        assert self.plan(None, {"0": "14GiB"}) == {"": 0}
        assert set(self.plan(None, {"0": "5GiB"}).values()) == {0, "cpu"}
        assert set(self.plan(None, {"0": "1MiB"}).values()) == {"cpu"}

    def test_tied_weights_share_a_card(self) -> None:
        plan = self.plan("sequential", {"0": "5GiB", "1": "40GiB"}, tie_word_embeddings=True)
        assert set(plan.values()) == {0, 1}
        assert plan["lm_head"] == plan["model.embed_tokens"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what is mapped")
@pytest.mark.parametrize(
    ("quantizer", "mapped"), [(W8A8S(), False), (W8A8S(ignore=["*attn*", "*up_proj", "*gate_proj"]), True)]
)
def test_a_quantized_model_holds_no_file(tmp_path: Path, quantizer: W8A8S, mapped: bool) -> None:
    folder = write_llama(tmp_path / "model")
    loaded = PyTorch().load(Pretrained("m", str(folder)).open(tmp_path), CPU)
    maps = Path("/proc/self/maps")
    assert str(folder) in maps.read_text()
    embeddings = loaded.module.get_input_embeddings().weight
    before = embeddings.detach().clone()
    loaded.module.lm_head.weight = torch.nn.Parameter(embeddings.detach())  # tied by memory alone
    PyTorch().calibrator(loaded, quantizer, TEXTS, 64).run()
    assert (str(folder) in maps.read_text()) == mapped
    assert torch.equal(embeddings, before)
    assert loaded.module.lm_head.weight.data_ptr() == embeddings.data_ptr()


class TestDevicesOfTheYaml:
    def device(self, *overrides: str) -> Device:
        return build(composed(["model=tiny_llama", "tracking=none", *overrides])).device

    def test_npu_multi_without_its_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("PYTORCH_NPU_ALLOC_CONF", "ASCEND_RT_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
        device = self.device("device=npu_multi")
        assert device.device_map == "auto"
        with pytest.raises(Unavailable, match=r"device=npu_multi needs the package torch_npu: install CANN"):
            PyTorch().check(Random("tiny", architecture=ARCHITECTURE).open(Path("unused")), device)
        assert os.environ.pop("PYTORCH_NPU_ALLOC_CONF") == "expandable_segments:False"
        assert "ASCEND_RT_VISIBLE_DEVICES" not in os.environ

    def test_the_users_own_environment_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTORCH_NPU_ALLOC_CONF", "max_split_size_mb:64")
        monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1,2,3")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert self.device("device=npu_multi").environment == {
            "PYTORCH_NPU_ALLOC_CONF": "max_split_size_mb:64",
            "ASCEND_RT_VISIBLE_DEVICES": "0,1,2,3",
        }
        assert self.device("device=cuda_multi").environment == {"CUDA_VISIBLE_DEVICES": "1"}

    def test_limits_from_the_command_line(self) -> None:
        device = self.device("device=npu_multi", "+device.max_memory.0=28GiB", "+device.max_memory.cpu=1000000")
        assert device.max_memory == {"0": "28GiB", "cpu": "1000000"}
        assert [size_of(size) for size in device.max_memory.values() if size] == [28 * 2**30, 1e6]
        assert self.device("device=cpu_disk").max_memory == {"cpu": "2GiB"}


def test_environment_is_exported_before_the_package_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vendor_of_cards.py").write_text("import os\nSEEN = os.environ['CARD_SETTING']\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CARD_SETTING", "before")
    monkeypatch.setenv("OTHER_SETTING", "kept")
    environment = {"CARD_SETTING": "exported", "OTHER_SETTING": None}
    check_device(Device("x", "cpu", "vendor_of_cards", environment=environment))
    import vendor_of_cards  # type: ignore[import-not-found]

    assert vendor_of_cards.SEEN == "exported"
    assert os.environ["OTHER_SETTING"] == "kept"


def test_a_card_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    device = Device("cards", "cuda", device_map="auto", max_memory={"1": "1GiB", "2": "1GiB"})
    with pytest.raises(Unavailable, match=r"device.max_memory.2: torch sees 2 cards here"):
        check_device(device)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "npu", "device_map": "spread"}, "device_map=spread is not known; allowed: null, auto"),
        ({"type": "cpu", "device_map": "auto"}, "device_map=auto spreads over cards; allowed with type=cpu: null"),
        ({"type": "cpu", "max_memory": {"0": "1GiB"}}, "max_memory.0 names a card; allowed with type=cpu: cpu"),
        ({"type": "npu", "max_memory": {"1": "1GiB"}}, "max_memory.1: device_map=null keeps to one card; allowed: 0"),
        ({"type": "npu", "max_memory": {"gpu": "1GiB"}}, "max_memory.gpu names no memory"),
        ({"type": "npu", "max_memory": {"0": "lots"}}, "max_memory.0=lots is no size"),
        ({"type": "cpu", "max_memory": {"cpu": "8"}}, "max_memory.cpu=8 is no size; allowed: a number with KiB"),
    ],
)
def test_wrong_devices(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Device("d", **values)  # type: ignore[arg-type]
