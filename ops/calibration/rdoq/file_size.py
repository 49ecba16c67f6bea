"""What a weight file holds beside the coded integers: how many bits these may take when the whole file has a target."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slimrun.ops.compress.native import Native
from slimrun.ops.format.arithmetic import ActivationGrid, QuantizedWeight
from slimrun.ops.format.linear import Int8Linear, Int8Table, quantized_linear
from slimrun.ops.quant.rdoq import RDOQ, SCALE_BITS

ENTRY_BYTES = 75  # of a tensor in the file's header, beside its name
CODED_PARTS = 2  # tensors of a coded weight beside `weight`
SPREAD, OFFSET = 0.3, 64  # of the logarithm of steps, of an input grid: as models have them


def aimed_at(
    quantizer: RDOQ, model: nn.Module, linears: Mapping[str, Tensor], tables: Mapping[str, Tensor]
) -> float | None:
    """Coded bits a weight to aim at, a step a row included; None on the steps of another method.

    For a file of some size these are what the rest of it leaves. Weights [n, k] are by name.
    """
    if quantizer.target_file_bits is None:
        return quantizer.bits
    rounded = {**linears, **tables}
    kept = [one for name, one in model.named_parameters() if name.removesuffix(".weight") not in rounded]
    parameters = sum(map(torch.Tensor.numel, [*kept, *rounded.values()]))
    rest = sum(one.nbytes for one in kept)
    for name, weight in rounded.items():
        kind = Int8Table.quant_type if name in tables else quantizer.quant_type
        stored = _stored(kind, weight)
        rest += sum(map(_coded_bytes, stored.values())) - SCALE_BITS // 8 * len(weight)
        rest += (len(stored) + 1 + CODED_PARTS) * (ENTRY_BYTES + len(name))
    return (quantizer.target_file_bits * parameters - 8 * rest) / sum(map(torch.Tensor.numel, rounded.values()))


def short(steps: Tensor) -> Tensor:
    """Steps of 8 significant bits, up to 0.2 % off: a file stores them in little more than a byte each."""
    return steps.to(torch.bfloat16).to(steps.dtype)


def _stored(kind: str, weight: Tensor) -> dict[str, Tensor]:
    """What a format stores beside the integers, of numbers like those that will be; a bias is a parameter already."""
    generator = torch.Generator().manual_seed(0)
    sums = torch.randint(-127, 128, (len(weight), 1), generator=generator).to(torch.int8)
    column = QuantizedWeight(sums, short(torch.randn(len(weight), 1, generator=generator).mul(SPREAD).exp()))
    linear = quantized_linear(kind, column, None, weight.dtype)
    if isinstance(linear, Int8Linear):
        linear.set_grid(column, ActivationGrid(1.0, OFFSET))
    return {suffix: tensor for suffix, tensor in linear.stored().items() if suffix != "weight"}


def _coded_bytes(tensor: Tensor) -> int:
    packed = Native().encode_numbers(tensor)
    return tensor.nbytes if packed is None else packed.nbytes
