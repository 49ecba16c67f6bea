"""The linears of a network, told by its structure: which route, and which weights are experts' that are no linear.

In transformers 5 the experts of a layer are one parameter [experts, rows, columns]; others keep a list of modules.
"""

from __future__ import annotations

import re

from torch import nn

ONE_OUTPUT = "one output: a gate or a score, it stays float"
PLAIN = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)  # their weights are no experts', whatever the shape
ROUTES = re.compile(r"router|gat(e|ing)$", re.IGNORECASE)  # of a module beside experts; gate_proj is none


def linear_names(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name and shape [n, k] of every `nn.Linear`, in module order."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of experts that are no linear: stacks of matrices, or one matrix of an owner that is called experts."""
    experts = {}
    for owner, module in model.named_modules():
        if isinstance(module, PLAIN):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            stack = parameter.ndim == 3 and min(parameter.shape) > 1
            matrix = parameter.ndim == 2 and "expert" in f"{owner} {type(module).__name__}".lower()
            if stack or (matrix and "bias" not in name and not _routes(owner, module)):
                experts[f"{owner}.{name}" if owner else name] = parameter
    return experts


def float_linears(model: nn.Module) -> dict[str, str]:
    """Linears that stay float whatever the method, and why: gates with one output, and routers of mixtures.

    They choose which experts a token sees; a rounding there sends it to others.
    """
    reasons = {
        name: ONE_OUTPUT
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1
    }
    for block, counts in _mixtures(model).items():
        for name, linear in _lone_linears(model.get_submodule(block)).items():
            whole = f"{block}.{name}" if block else name
            if linear.out_features in counts or any(ROUTES.search(part) for part in name.split(".")):
                reasons.setdefault(whole, "router of a mixture of experts: it stays float")
    return reasons


def _mixtures(model: nn.Module) -> dict[str, set[int]]:
    """Modules that hold experts beside what routes to them, with the numbers of experts."""
    mixtures: dict[str, set[int]] = {}
    for name, parameter in expert_parameters(model).items():
        parts = name.split(".")[:-1]
        named = [place for place, part in enumerate(parts) if "expert" in part.lower()]
        first = named[0] if named else len(parts) - 1
        for depth in range(first, len(parts)):  # a mixture may itself be called experts
            counts = mixtures.setdefault(".".join(parts[:depth]), set())
            counts.update({parameter.shape[0]} if parameter.ndim == 3 else set())
    for name, module in model.named_modules():
        block, _, own = name.rpartition(".")
        if isinstance(module, nn.ModuleList) and "expert" in own.lower():
            mixtures.setdefault(block, set()).add(len(module))
    return mixtures


def _lone_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Linears of a block that are its children or the only linear of one: no MLP, and no expert."""
    lone = {}
    for child, module in block.named_children():
        inner = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
        if len(inner) == 1 and "expert" not in child.lower():
            lone[f"{child}.{inner[0][0]}".rstrip(".")] = inner[0][1]
    return lone


def _routes(owner: str, module: nn.Module) -> bool:
    return any(ROUTES.search(text) for text in (owner.rpartition(".")[2], type(module).__name__))
