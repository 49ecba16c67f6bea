"""What quantizing asks of a float weight [n, k], each in one pass over its numbers as they are stored.

On the CPU the passes are those of ops/csrc/weights.hpp; on other devices torch does the same some rows at a time, to
the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimrun.ops import _native

BLOCK = 2**18  # weights that are worked on at once: as floats they stay in the processor's cache
SAMPLE = 16384  # weights that tell roughly where the largest begin
CUT = 0.5001  # of a step: a weight on the outermost level that is farther from it was cut
LEVEL = 127  # the outermost


def row_blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of a weight [n, k] after the others, each time with where they are: what is made of them is small.

    A large matrix that every step of the arithmetic passes as a whole takes nearly twice as long.
    """
    count = max(1, BLOCK // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], count):
        rows = slice(start, start + count)
        yield rows, weight[rows]


def extremes(weight: Tensor, threshold: float = float("inf")) -> tuple[Tensor, Tensor]:
    """float32 [n, 1] of each row: max{|w| <= threshold}, 0 where there is none, and max|w|."""
    if (numbers := _numbers(weight)) is not None:
        normal, largest = torch.empty(len(weight), 1), torch.empty(len(weight), 1)
        _native.extremes_into(*numbers, threshold, normal.numpy(), largest.numpy(), torch.get_num_threads())
        return normal, largest
    normals, largests = [], []
    for _, block in row_blocks(weight.detach()):
        magnitude = block.float().abs()
        largests.append(magnitude.amax(dim=1, keepdim=True))
        normals.append(magnitude.masked_fill_(magnitude > threshold, 0).amax(dim=1, keepdim=True))
    return torch.cat(normals), torch.cat(largests)


def largest_magnitude(weight: Tensor, count: int) -> Tensor:
    """Scalar float32: the `count`-th largest |w|, 1 being the largest, of a tensor of any shape."""
    flat = weight.detach().reshape(-1)
    sample = flat[:: -(-flat.numel() // SAMPLE)].float().abs()
    share = count / flat.numel()
    guess = sample.topk(min(len(sample), int(1.5 * share * len(sample)) + 16)).values[-1]
    numbers = _numbers(weight.reshape(1, -1) if weight.ndim != 2 else weight)
    if numbers is not None and float(guess) > 0:
        found = _native.select_magnitude(*numbers, count, float(guess), torch.get_num_threads())
        if found >= 0:
            return torch.tensor(found)
    magnitudes = (part.float().abs() for part in torch.split(flat, BLOCK))
    large = torch.cat([one[one >= guess] for one in magnitudes])  # selecting among a few is several times faster
    candidates = large if large.numel() >= count else flat.float().abs()
    return candidates.topk(count, sorted=False).values.min()


def round_to_grid(weight: Tensor, scale: Tensor, low: int = -LEVEL, high: int = LEVEL) -> Tensor:
    """int8 integers clamp(round_half_even(weight / scale), low, high); weight [n, k], scale [n, 1] or [1, 1]."""
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    steps = scale.expand(weight.shape[0], 1)
    if (numbers := _numbers(weight)) is not None and steps.dtype == torch.float32:
        _native.round_into(*numbers, _rows(steps), low, high, values.numpy(), torch.get_num_threads())
        return values
    for rows, block in row_blocks(weight.detach()):
        values[rows] = (block.float() / steps[rows]).round_().clamp_(low, high)
    return values


def rounding_errors(weight: Tensor, values: Tensor, scale: Tensor) -> tuple[float, float, int]:
    """(sum of squared errors, sum of squared weights, how many weights the grid cuts) of values [n, k] on steps.

    The first two are the same but for their last digits on every device.
    """
    steps = scale.expand(weight.shape[0], 1)
    if (numbers := _numbers(weight)) is not None and values.is_contiguous() and steps.dtype == torch.float32:
        sums, cut = np.empty((2, len(weight))), np.empty(len(weight), np.uint32)
        threads = torch.get_num_threads()
        _native.errors_into(*numbers, _rows(steps), values.numpy(), CUT, sums[0], sums[1], cut, threads)
        return float(sums[0].sum()), float(sums[1].sum()), int(cut.sum())
    noise = signal = 0.0
    count = 0
    for rows, block in row_blocks(weight.detach()):
        exact, integers = block.float(), values[rows]
        error = (integers * steps[rows]).sub_(exact)
        noise += float(torch.linalg.vector_norm(error)) ** 2
        signal += float(torch.linalg.vector_norm(exact)) ** 2
        edge = (integers >= LEVEL) | (integers <= -LEVEL)  # only there the grid can cut
        count += int((error[edge].abs() > CUT * steps[rows].expand_as(error)[edge]).sum())
    return noise, signal, count


def row_sums(values: Tensor) -> Tensor:
    """int32 [n] of int8 values [n, k]."""
    if values.device.type != "cpu" or not values.is_contiguous():
        return values.sum(dim=1, dtype=torch.int32)
    sums = torch.empty(len(values), dtype=torch.int32)
    _native.row_sums_into(values.numpy(), sums.numpy(), torch.get_num_threads())
    return sums


def _numbers(weight: Tensor) -> tuple[Any, bool] | None:
    """A matrix as native passes take it, and whether its words are bfloat16; None where they cannot."""
    weight = weight.detach()
    if weight.device.type != "cpu" or not weight.is_contiguous():
        return None
    if weight.dtype == torch.float32:
        return weight.numpy(), False
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return None
    return weight.view(torch.int16).numpy(), weight.dtype == torch.bfloat16


def _rows(steps: Tensor) -> Any:
    return steps.detach().reshape(-1).contiguous().numpy()
