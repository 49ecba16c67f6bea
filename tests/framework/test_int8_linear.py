"""The stored tensors of a quantized linear: dtypes and shapes of the file format, and the way back."""

from __future__ import annotations

import pytest
import torch

from slimrun.ops.format.arithmetic import QuantizedWeight, activation_grid
from slimrun.ops.format.linear import Int8Linear, restored_linear


def make(dtype: torch.dtype, bias: bool = True, per_channel: bool = True) -> Int8Linear:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (6, 10), dtype=torch.int8, generator=generator)
    scale = torch.rand((6, 1) if per_channel else (1, 1), generator=generator) * 0.01
    linear = Int8Linear(values, torch.randn(6, generator=generator).to(dtype) if bias else None, dtype)
    linear.set_grid(QuantizedWeight(values, scale), activation_grid(-1.0, 3.0, dtype))
    return linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_stored_format_and_way_back(dtype: torch.dtype, bias: bool, per_channel: bool) -> None:
    linear = make(dtype, bias, per_channel)
    stored = linear.stored()
    scales = 6 if per_channel else 1
    expected = {
        "weight": (torch.int8, (6, 10)),
        "input_scale": (dtype, (1,)),
        "input_offset": (dtype, (1,)),
        "quant_bias": (torch.int32, (6,)),
        "deq_scale": (torch.float32 if dtype == torch.bfloat16 else torch.int64, (scales,)),
    } | ({"bias": (dtype, (6,))} if bias else {})
    assert {key: (value.dtype, tuple(value.shape)) for key, value in stored.items()} == expected

    restored = restored_linear("W8A8S", stored, (6, 10))
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(restored(x), linear(x))
    assert restored.grid == linear.grid


def test_deq_scale_is_the_float32_bit_pattern() -> None:
    linear = make(torch.float32)
    bits = linear.stored()["deq_scale"]
    assert bits.tolist() == [int.from_bytes(value.numpy().tobytes(), "little") for value in linear.deq_scale]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deq_scale": None}, "lacks deq_scale"),
        ({"weight": torch.zeros(6, 10)}, "int8 matrix"),
        ({"quant_bias": torch.zeros(5, dtype=torch.int32)}, "one quant_bias a row"),
        ({"deq_scale": torch.zeros(5, dtype=torch.int64)}, "deq_scale is .* of shape"),
    ],
)
def test_wrong_tensors_are_named(change: dict[str, torch.Tensor | None], message: str) -> None:
    stored = {key: value for key, value in (make(torch.float32).stored() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        restored_linear("W8A8S", stored, (6, 10))
