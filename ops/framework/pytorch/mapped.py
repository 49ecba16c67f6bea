"""Weights of a torch model that memory has no room for: mapped from files, out of memory again once they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from slimrun.ops.memory import Room, in_files


def settle(module: nn.Module, room: Room) -> None:
    """Where memory has no room for the model, move what is not mapped from its own files to files of the room."""
    weights = {tensor.data_ptr(): tensor for tensor in module.parameters() if tensor.device.type == "cpu"}
    if not room.holds(module, sum(tensor.nbytes for tensor in weights.values())):
        mapped = dict(zip(weights, in_files(weights.values()), strict=True))
        move([one for one in module.parameters() if not mapped.get(one.data_ptr(), True)], room.keep)
    release_after_use(module, room)


def release_after_use(module: nn.Module, room: Room) -> None:
    """From now on the weights of a module, and of each in it, leave memory when it has run, if room is short."""
    for part in module.modules() if room.full else []:
        if not any(isinstance(hook, Release) for hook in part._forward_hooks.values()):
            part.register_forward_hook(Release(room))


class Release:
    """A hook of modules, by which their own weights leave memory."""

    def __init__(self, room: Room) -> None:
        self.room = room

    def __call__(self, module: nn.Module, *_: Any) -> None:
        """Let the weights of the module, which has run, leave memory."""
        self.room.release([*module.parameters(recurse=False), *module.buffers(recurse=False)])

    def __deepcopy__(self, _: object) -> Release:
        return self


def move(parameters: Sequence[nn.Parameter], to: Callable[[Tensor], Tensor]) -> None:
    """Give parameters other memory; what shares memory goes on doing so."""
    moved: dict[tuple[Any, ...], Tensor] = {}
    for parameter in parameters:
        where = parameter.data_ptr(), parameter.shape, parameter.stride()
        if where not in moved:
            moved[where] = to(parameter.data)
        parameter.data = moved[where]
