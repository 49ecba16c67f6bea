"""MindSpore's own side: which cells are linears, that graphs compute what PyNative does, checkpoints, compilations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimrun.ops.errors import Unavailable
from slimrun.ops.framework import mindspore as framework

pytestmark = pytest.mark.mindspore
try:
    framework.require()
except Unavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

import mindspore as ms
from mindspore import Tensor, mint, nn

from slimrun.ops.calibration.sequential import SequentialCalibrator
from slimrun.ops.format.arithmetic import ActivationGrid, int8_linear
from slimrun.ops.framework.mindspore.cells import linear_names
from slimrun.ops.framework.mindspore.int8_cell import WeightOnly, static_product
from slimrun.ops.framework.mindspore.llama_model import LlamaModel
from slimrun.ops.framework.mindspore.loading import check_config
from slimrun.ops.framework.mindspore.network import MindSporeNetwork
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic
from slimrun.ops.quant.w8a16 import W8A16
from slimrun.ops.weights import ckpt

from ..conftest import CPU, described


class Mixed(nn.Cell):
    """Every kind of linear, one with an activation, and cells that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Dense(16, 32, activation="relu")
        self.blocks = nn.SequentialCell(mint.nn.Linear(32, 24), nn.Dense(24, 24, has_bias=False))
        self.conv = nn.Conv1d(4, 4, 3)
        self.last = nn.Dense(24, 8)

    def construct(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(self.first(x)))


def inputs(seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).normal(0, 1, (5, 16)).astype(np.float32))


@pytest.mark.parametrize("quantizer", [W8A8(), W8A8Dynamic(), W8A16()], ids=lambda quantizer: type(quantizer).__name__)
def test_every_linear_is_found_and_a_graph_computes_the_same(quantizer: Quantizer) -> None:
    # what is compared is calibrated on too: static ranges clip what they have not seen, up to a tenth of such layers
    ms.set_seed(0)
    network = Mixed().set_train(False)
    assert list(linear_names(network)) == ["first", "blocks.0", "blocks.1", "last"]
    expected = network(inputs(9)).asnumpy()
    SequentialCalibrator(MindSporeNetwork(network), quantizer, [[inputs(seed)] for seed in range(6, 10)]).run()
    assert list(linear_names(network)) == ["last"]
    outputs = network(inputs(9)).asnumpy()
    assert 0 < np.linalg.norm(outputs - expected) < 0.02 * np.linalg.norm(expected)

    @ms.jit
    def compiled(x: Any) -> Any:
        return network(x)

    np.testing.assert_allclose(compiled(inputs(9)).asnumpy(), outputs, rtol=1e-6, atol=1e-6)
    assert {parameter.name for parameter in network.get_parameters()} >= {"first.weight", "blocks.0.weight"}


@pytest.mark.parametrize("depth", [1, 100, 3000])
def test_the_product_without_a_host_is_exact(depth: int) -> None:
    generator = torch.Generator().manual_seed(depth)
    x = torch.randn(3, depth, generator=generator)
    weight = torch.randint(-127, 128, (7, depth), generator=generator, dtype=torch.int8)
    bias = torch.randint(-1000, 1000, (7,), generator=generator, dtype=torch.int32)
    scale = torch.rand(7, generator=generator)
    expected = int8_linear(x, weight, ActivationGrid(0.02, 3), bias, scale)
    arguments = [x, weight, torch.tensor([0.02]), torch.tensor([3], dtype=torch.int32), bias, scale]
    product = static_product(*(Tensor.from_numpy(tensor.numpy()) for tensor in arguments))
    np.testing.assert_array_equal(product.asnumpy(), expected.numpy())


def test_generation_compiles_for_prompts_and_for_a_token_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = framework.MindSpore().load(described().open(Path("unused")), CPU)
    assert isinstance(model, LlamaModel)
    shapes = []
    graph = model._graph()
    monkeypatch.setattr(model, "_graph", lambda: lambda ids, *rest: shapes.append(ids.shape) or graph(ids, *rest))
    model.generate([model.encode("a prompt"), model.encode("another")], max_new_tokens=9)
    assert len(shapes) == 9
    assert set(shapes) == {(2, 64), (2, 1)}


def test_checkpoints_keep_every_dtype(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {
        "int8": torch.tensor([[-128, 127]], dtype=torch.int8),
        "bits": torch.tensor([2**40, -1]),
        "half": torch.tensor([1.5], dtype=torch.float16),
        "brain": torch.tensor([1.5, 3e38], dtype=torch.bfloat16),
    }
    path = tmp_path / "all.ckpt"
    ckpt.write(path, tensors)
    read_back = ckpt.read(path)
    assert all(
        torch.equal(read_back[key], tensor) and read_back[key].dtype == tensor.dtype for key, tensor in tensors.items()
    )
    assert path.stat().st_mode & 0o777 == 0o400
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"all\.ckpt is no MindSpore checkpoint"):
        ckpt.read(path)


def test_models_that_are_no_llama_are_refused_with_the_way_out() -> None:
    other = described(model_type="gpt2")
    with pytest.raises(Unavailable, match=r"framework=mindspore builds llama.*model\.loader=PACKAGE\.FUNCTION"):
        check_config(other.open(Path("unused")).config(), other.name)
    turning = described(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(Unavailable, match=r"rope_type=dynamic is not built"):
        check_config(turning.open(Path("unused")).config(), turning.name)


class Direct(nn.Cell):
    """Reads one weight itself, and calls one branch for nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.read, self.unreached, self.last = (nn.Dense(16, 16) for _ in range(4))

    def construct(self, x: Tensor, rare: bool = False) -> Tensor:
        x = ms.ops.matmul(self.first(x), self.read.weight)
        return self.last(self.unreached(x) if rare else x)


@pytest.mark.parametrize("one_format", [False, True])
def test_weights_that_the_network_reads_and_linears_without_samples(one_format: bool) -> None:
    network = Direct().set_train(False)
    expected = network(inputs(9), True).asnumpy()
    calibrator = SequentialCalibrator(MindSporeNetwork(network), W8A8(), [[inputs(9)]], one_format=one_format)
    layers = {layer.name: layer for layer in calibrator.run()}
    assert layers["read"].note == "kept float, because the model reads the weight itself"
    assert layers["unreached"].note.endswith("kept float, because no calibration sample reached it")
    assert layers["unreached"].quantized is not one_format
    assert len(calibrator.notes) == 2
    assert isinstance(network.read, nn.Dense)
    assert isinstance(network.unreached, nn.Dense if one_format else WeightOnly)
    outputs = network(inputs(9), True).asnumpy()
    assert np.linalg.norm(outputs - expected) < 0.05 * np.linalg.norm(expected)
    with pytest.raises(ValueError, match="quantized already"):
        SequentialCalibrator(MindSporeNetwork(network), W8A8(), [[inputs()]])
