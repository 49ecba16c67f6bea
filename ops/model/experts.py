"""Experts of a mixture as linears of their own.

transformers 5 keeps the experts of a layer in stacks, `gate_up_proj` [experts, 2 * inner, channels] and `down_proj`
[experts, channels, inner], that no `nn.Linear` shows. Here each expert has gate_proj, up_proj and down_proj under
`experts.NUMBER`, as most checkpoints name them and as engines read them; the weights are parts of the stacks.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, nn

from slimrun.ops.memory import Room


class Expert(nn.Module):
    """One expert: down_proj(gate(gate_proj(x), up_proj(x))); one without a gate has none of the first."""

    def __init__(self, gate: nn.Linear | None, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        if gate is not None:
            self.gate_proj = gate
        self.up_proj = up
        self.down_proj = down

    def inner(self, x: Tensor, interleaved: bool) -> Tensor:
        """x [t, channels] -> [t, 2 * inner], gate and up as the stack has them; [t, inner] without a gate."""
        up: Tensor = self.up_proj(x)
        if not hasattr(self, "gate_proj"):
            return up
        gate: Tensor = self.gate_proj(x)
        return torch.stack((gate, up), dim=-1).flatten(-2) if interleaved else torch.cat((gate, up), dim=-1)


class Experts(nn.ModuleList):
    """The experts of a layer, each run on the tokens that are routed to it."""

    def __init__(self, stacked: Any, room: Room) -> None:
        super().__init__(_expert(stacked, number, room) for number in range(stacked.num_experts))
        self.interleaved = not stacked.is_concatenated
        own: Any = stacked
        for name in [name for name, _ in own.named_parameters(recurse=False)]:
            delattr(own, name)  # what its activation needs stays
        self._activate: Callable[[Tensor], Tensor] = own._apply_gate if own.has_gate else own.act_fn

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states [t, channels], for each token the numbers and the weights [t, k] of its experts."""
        mixed = torch.zeros_like(hidden_states)
        for number in torch.unique(top_k_index).tolist():
            if number >= len(self):  # stands for no expert
                continue
            token, place = torch.where(top_k_index == number)
            expert: Any = self[number]
            out = expert.down_proj(self._activate(expert.inner(hidden_states[token], self.interleaved)))
            mixed.index_add_(0, token, (out * top_k_weights[token, place, None]).to(mixed.dtype))
        return mixed


def unstack(model: nn.Module, kept: Container[str] = (), room: Room | None = None) -> None:
    """Give every expert of the model linears of its own, in place; the memory of the weights stays the same.

    Where an expert's rows lie apart (gpt-oss has them transposed and by turns) they are copied, into `room`.
    Stacks among `kept`, by the names of their parameters, stay as they are, and so do those that transformers does not
    describe (of code of the model's own, with a norm between the matrices).
    """
    for name, module in list(model.named_modules()):
        if is_stack(module) and f"{name}.down_proj" not in kept:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Experts(module, room or Room()))


def is_stack(module: nn.Module) -> bool:
    """Whether these are stacked experts whose layout transformers tells."""
    told = all(hasattr(module, name) for name in ("is_transposed", "is_concatenated", "has_gate", "has_bias"))
    return told and not getattr(module, "has_post_expert_norm", False) and hasattr(module, "down_proj")


def _expert(stacked: Any, number: int, room: Room) -> Expert:
    first = "gate_up_proj" if stacked.has_gate else "up_proj"
    weight, bias = _of(stacked, first, number)
    down = _linear(*_of(stacked, "down_proj", number), room)
    if not stacked.has_gate:
        return Expert(None, _linear(weight, bias, room), down)
    half = len(weight) // 2
    halves = (slice(half), slice(half, None)) if stacked.is_concatenated else (slice(0, None, 2), slice(1, None, 2))
    gate, up = (_linear(weight[rows], None if bias is None else bias[rows], room) for rows in halves)
    return Expert(gate, up, down)


def _of(stacked: Any, name: str, number: int) -> tuple[Tensor, Tensor | None]:
    """Weight [n, k] and bias [n] of one expert."""
    weight: Tensor = getattr(stacked, name).detach()[number]
    bias = getattr(stacked, f"{name}_bias").detach()[number] if stacked.has_bias else None
    return weight.t() if stacked.is_transposed else weight, bias


def _linear(weight: Tensor, bias: Tensor | None, room: Room) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(_rows(weight, room), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return linear


def _rows(weight: Tensor, room: Room) -> Tensor:
    """The weight [n, k] row after row in memory."""
    if weight.is_contiguous() or weight.device.type != "cpu":
        return weight.contiguous()
    rows = room.empty(weight.shape, weight.dtype).copy_(weight)
    room.release([rows, weight])
    return rows
