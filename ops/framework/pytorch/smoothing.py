"""Folding a smoothing into a torch model: which norms feed which linears, and their new weights and biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ops.quant.base import Quantizer
from ops.quant.smooth import Smoothing, find_smoothing

SAMPLE_TOKENS = 128  # outputs of each norm that the search looks at
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass
class Norm:
    """A norm, what it gave during calibration, and the linears that read it."""

    module: nn.Module
    low: Tensor
    high: Tensor
    tokens: Tensor  # [at most SAMPLE_TOKENS, c]
    readers: dict[str, nn.Linear] = field(default_factory=dict)


@torch.no_grad()
def smooth(model: nn.Module, quantizer: Quantizer, selected: set[str], runs: Iterable[Callable[[], Any]]) -> list[str]:
    """Smooth every norm that feeds a selected linear; returns the names of the changed norms.

    `runs` runs the model once for each calibration sample. ValueError when a norm is not an affine one, or when the
    model computes something else afterwards (it then uses a norm's output in a way that no hook can see).
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("do_smooth=true needs all weights in memory, but some are offloaded; give device more memory")
    runs = list(runs)
    before = _first_tensor(runs[0]())
    changed = []
    for name, norm in observed_norms(model, runs).items():
        if selected.intersection(norm.readers):
            smoothing = find_smoothing(
                norm.tokens, norm.low, norm.high, [r.weight for r in norm.readers.values()], quantizer.quantize_weight
            )
            _fold_norm(name, norm, smoothing)
            for linear in norm.readers.values():
                _fold_linear(linear, smoothing)
            changed.append(name)
    after = _first_tensor(runs[0]())
    distance = float((after.float() - before.float()).norm() / before.float().norm())
    if not distance <= TOLERANCE.get(before.dtype, 1e-1):
        raise ValueError(
            f"do_smooth=true changes what this model computes by {distance:.1%}: a norm's output is used beside its "
            "linears; take do_smooth=false"
        )
    return changed


def observed_norms(model: nn.Module, runs: list[Callable[[], Any]]) -> dict[str, Norm]:
    """Every norm (by class name, with a weight [c]) whose output a linear reads, with its extremes over all runs."""
    norms: dict[str, Norm] = {}
    outputs: dict[int, tuple[str, Tensor]] = {}  # keeps the outputs alive, so that no id is used twice in a run

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, out: Tensor) -> None:
            outputs[id(out)] = name, out
            rows = out.detach().reshape(-1, out.shape[-1]).to(torch.float32)
            low, high = rows.amin(dim=0), rows.amax(dim=0)
            norm = norms.setdefault(name, Norm(module, low, high, rows[:0]))
            norm.low, norm.high = torch.minimum(norm.low, low), torch.maximum(norm.high, high)
            wanted = SAMPLE_TOKENS // len(runs) + 1
            norm.tokens = torch.cat([norm.tokens, rows[:: -(-len(rows) // wanted)]])

        return hook

    def read(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, nn.Linear)
            if id(inputs[0]) in outputs:
                norms[outputs[id(inputs[0])][0]].readers[name] = module

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(read(name)))
        elif "Norm" in type(module).__name__ and getattr(getattr(module, "weight", None), "ndim", 0) == 1:
            handles.append(module.register_forward_hook(record(name)))
    try:
        for run in runs:
            run()
            outputs.clear()
    finally:
        for handle in handles:
            handle.remove()
    return {name: norm for name, norm in norms.items() if norm.readers}


def add_bias(module: nn.Module, bias: Tensor) -> None:
    """Give a norm or linear that has none a bias [c], stored as `.bias` beside its `.weight`."""
    had = getattr(module, "bias", None)
    if had is None:
        module.register_parameter("bias", nn.Parameter(bias, requires_grad=False))
        if not isinstance(module, nn.Linear):  # a norm's own forward knows no bias
            module.register_forward_hook(lambda norm, _, out: out + norm.bias)
    else:
        had.copy_(bias)


def _fold_norm(name: str, norm: Norm, smoothing: Smoothing) -> None:
    module: Any = norm.module
    probe = torch.linspace(-1, 1, norm.low.numel(), dtype=module.weight.dtype, device=module.weight.device)
    before = module(probe.reshape(1, -1)).float()
    old = 0 if getattr(module, "bias", None) is None else module.bias.float()
    module.weight.copy_(module.weight.float() / smoothing.scale)
    add_bias(module, ((old - smoothing.shift) / smoothing.scale).to(module.weight.dtype))
    expected = (before - smoothing.shift) / smoothing.scale
    error = float((module(probe.reshape(1, -1)).float() - expected).abs().max())
    if not error <= TOLERANCE.get(module.weight.dtype, 1e-1) * float(expected.abs().max()):
        raise ValueError(f"do_smooth=true: {name} ({type(module).__name__}) is not normalization times weight")


def _fold_linear(linear: nn.Linear, smoothing: Smoothing) -> None:
    bias = linear.weight.float() @ smoothing.shift
    if linear.bias is not None:
        bias += linear.bias.float()
    linear.weight.copy_(linear.weight.float() * smoothing.scale)
    add_bias(linear, bias.to(linear.weight.dtype))


def _first_tensor(output: Any) -> Tensor:
    """The first tensor of a model's output: a tensor, a tuple, or a ModelOutput."""
    found = output if isinstance(output, Tensor) else output[0]
    assert isinstance(found, Tensor)
    return found
