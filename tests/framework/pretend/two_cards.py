"""Runs models on one processor and over two pretend cards, and exits with an error when anything differs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

torch.inference_mode = torch.no_grad  # the pretend tensors have no version counters
LlamaPreTrainedModel._supports_sdpa = False  # one attention on both sides

from slimrun.ops.framework.base import Device  # noqa: E402
from slimrun.ops.model.pretrained import Pretrained  # noqa: E402
from slimrun.ops.quant.w8a8s import W8A8S  # noqa: E402
from tests.conftest import CPU  # noqa: E402
from tests.framework.chatglm import write_folder  # noqa: E402
from tests.framework.test_placement import assert_same, run, write_llama  # noqa: E402


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quantizer = W8A8S(fraction=0.1, observer="minmax", ignore_last_linear=False)
        llama = Pretrained("llama", str(write_llama(folder / "llama", num_hidden_layers=2)))
        glm = Pretrained("glm", str(write_folder(folder / "glm")), trust_remote_code=True)
        expected = {model.name: run(model, CPU, quantizer, folder / "plain")[0] for model in (llama, glm)}
        for model, memory in ((glm, {}), (llama, {"0": "230KB", "1": "160KB", "cpu": "350KB"})):
            kind = "sequential" if memory else "auto"
            device = Device("npu_multi", "npu", "torch_npu", device_map=kind, max_memory=memory)
            on_cards, maps = run(model, device, quantizer, folder / "cards")
            assert_same(expected[model.name], on_cards)
            print(model.name, sorted({str(where) for where in maps[0].values()}))


main()
