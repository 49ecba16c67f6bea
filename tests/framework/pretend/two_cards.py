"""Runs models on one processor and over two pretend cards, and exits with an error when anything differs."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path

import torch
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

torch.inference_mode = torch.no_grad  # the pretend tensors have no version counters
LlamaPreTrainedModel._supports_sdpa = False  # one attention on both sides

from slimrun.ops.calibration.journal import Journal  # noqa: E402
from slimrun.ops.calibration.rdoq import gradients  # noqa: E402
from slimrun.ops.framework.base import Device  # noqa: E402
from slimrun.ops.framework.pytorch import PyTorch  # noqa: E402
from slimrun.ops.model.base import Model  # noqa: E402
from slimrun.ops.model.pretrained import Pretrained  # noqa: E402
from slimrun.ops.quant.base import Quantizer  # noqa: E402
from slimrun.ops.quant.rdoq import RDOQ  # noqa: E402
from slimrun.ops.quant.w8a8s import W8A8S  # noqa: E402
from tests.conftest import CPU, TEXTS  # noqa: E402
from tests.framework.chatglm import write_folder  # noqa: E402
from tests.framework.test_placement import assert_same, run, write_llama  # noqa: E402

gradients.fast_bfloat16 = lambda _: False  # one dtype of products on both sides
W8 = W8A8S(fraction=0.1, observer="minmax", ignore_last_linear=False)
BITS = RDOQ(target_bits=4)
LITTLE = {"0": "230KB", "1": "160KB", "cpu": "1KB"}  # what is made of the model lies on disk
QUANTIZED = 5  # where `run` has the tensors
CASES: list[tuple[str, Quantizer, str | None, dict[str, str]]] = [
    ("glm", W8, "auto", {}),
    ("llama", W8, "sequential", LITTLE),
    ("llama", W8, None, {"0": "1KB"}),
    ("llama", BITS, "sequential", LITTLE),
    ("llama", BITS, None, {"0": "230KB", "cpu": "1KB"}),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = {
            "llama": Pretrained("llama", str(write_llama(folder / "llama", num_hidden_layers=2))),
            "glm": Pretrained("glm", str(write_folder(folder / "glm")), trust_remote_code=True),
        }
        plain: dict[str, list[object]] = {}
        for name, quantizer, kind, memory in CASES:
            device = Device("cards", "npu", "torch_npu", device_map=kind, max_memory=dict(memory))
            results, maps = run(models[name], device, quantizer, folder / "cards")
            method = f"{name} {type(quantizer).__name__}"
            if method not in plain:  # gradients differ in their last digits from those of the CPU
                one = CPU if quantizer is W8 else Device("card", "npu", "torch_npu")
                plain[method], _ = run(models[name], one, quantizer, folder / "plain")
            assert_same(plain[method], results)
            if name == "llama" and kind:
                stopped = go_on(models[name], device, quantizer, folder / method, 17 if quantizer is W8 else 70)
                assert_same([results[QUANTIZED]], [stopped])
            print(method, kind, *sorted({str(where) for where in maps[0].values()}))


def go_on(model: Model, device: Device, quantizer: Quantizer, folder: Path, last: int) -> dict[str, torch.Tensor]:
    """The tensors of a run that is stopped at a step, and then gone on with."""
    folder.mkdir()

    def stop(done: int, total: int, part: str = "") -> None:
        if next(steps) == last:
            raise KeyboardInterrupt

    for first in (0, last + 1):
        steps = count(first)
        loaded = PyTorch().load(model.open(folder), device)
        calibrator = PyTorch().calibrator(loaded, quantizer, TEXTS, 32)
        calibrator.journal = Journal(folder, seconds=0)
        with suppress(KeyboardInterrupt):
            calibrator.quantize(progress=stop)
            calibrator.calibrate(stop)
        assert any(folder.glob("*.safetensors"))
    return dict(loaded.tensors())


main()
