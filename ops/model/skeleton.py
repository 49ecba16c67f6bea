"""A model's modules without the memory of its parameters, and the shapes its config asks for."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from slimrun.ops.model.auto import AutoModelForCausalLM
from slimrun.ops.model.experts import unstack
from slimrun.ops.model.linears import linear_names


class _Building(threading.local):
    """Whether this thread builds a skeleton: modules that other threads make meanwhile keep their memory."""

    now = False
    left = math.inf  # how many parameters more the model may have


_building = _Building()
_one_at_a_time = threading.Lock()  # transformers sets torch's default dtype, the whole process's, and sets it back


def skeleton(config: Any, *, trust_remote_code: bool = False) -> Any:
    """The model's modules with parameters on the meta device (no memory) and real buffers."""
    with _one_at_a_time:
        _building.now = True
        try:
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        finally:
            _building.now = False


@dataclass(frozen=True)
class Shapes:
    """What a config asks for."""

    stored: dict[str, Tensor]  # every parameter and buffer that a file holds, by name, without memory
    linears: dict[str, tuple[int, int]]
    computed_bytes: int  # of the buffers that no file holds, which building the model fills


def shapes_of(config: Any, most: float = math.inf) -> Shapes:
    """The shapes of a model of transformers, buffers included, without their memory.

    ValueError as soon as it has more than `most` parameters: a config can ask for any number of layers.
    """
    with _one_at_a_time, torch.device("meta"):
        _building.left = most
        try:
            module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            unstack(module)
        finally:
            _building.left = math.inf
    stored = module.state_dict()
    computed = [tensor for name, tensor in module.named_buffers() if name not in stored]
    return Shapes(stored, linear_names(module), sum(tensor.nbytes for tensor in computed))


def _without_memory(module: nn.Module, name: str, parameter: Tensor | None) -> Tensor | None:
    """What is registered instead of a parameter; None leaves it."""
    _building.left -= 1
    if _building.left < 0:
        raise ValueError("asks for more parameters than the weight file has")
    if not _building.now or parameter is None or parameter.is_meta:
        return None
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


# for good, since all threads share the hooks; torch's annotation forgets that one may give another parameter
register_module_parameter_registration_hook(_without_memory)  # type: ignore[arg-type]
