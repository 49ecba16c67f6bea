"""A model over cards and main memory: which module goes where, and the way there.

What no card has room for stays in main memory, mapped from its files where these are, and visits the first card module
by module as it runs there. Whoever reads or changes a weight between runs finds it where it lies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any, Self

import torch
from accelerate import infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from accelerate.utils import get_balanced_memory, send_to_device
from torch import Tensor, nn

from slimrun.ops.framework.base import Device, size_of

MEMORY = "cpu"  # what accelerate calls main memory
WEIGHTS_SHARE = 0.9  # of what a card has free, as accelerate has it: the rest is for what is computed

Moved = dict[tuple[Any, ...], tuple[Tensor, Tensor]]  # address, shape, stride -> before, which keeps it, and after


def place(module: Any, device: Device) -> Any:
    """A model in main memory, moved to the device or spread over cards as its device_map says."""
    if device.type == "cpu":
        return module
    places = find_device_map(module, device)
    module.hf_device_map = places  # as transformers calls it
    cards = {name: None if where == MEMORY else torch.device(device.type, int(where)) for name, where in places.items()}
    only, *others = set(cards.values())
    if only is not None and not others:
        moved: Moved = {}
        for owner in module.modules():
            _move(owner, only, moved)
        return module
    spread(module, cards, torch.device(device.type, 0))
    return module


def find_device_map(module: Any, device: Device) -> dict[str, int | str]:
    """Module name -> number of a card, or "cpu" for main memory; weights may be on the meta device.

    Decoder layers stay whole and tied weights together.
    """
    limits = _limits(device)
    whole = list(getattr(module, "_no_split_modules", None) or [])
    if device.device_map is None and _size(module) <= limits[0]:
        return {"": 0}
    if device.device_map not in (None, "sequential"):
        limits = get_balanced_memory(
            module, limits, no_split_module_classes=whole, low_zero=device.device_map == "balanced_low_0"
        )
    limits[MEMORY] = math.inf
    return dict(infer_auto_device_map(module, limits, whole, offload_buffers=True))


def spread(module: nn.Module, places: Mapping[str, torch.device | None], host: torch.device) -> None:
    """Move each part to its card; one that has none visits the host as it runs."""
    skip = getattr(module, "_skip_keys_device_placement", None)
    parts = dict(module.named_modules(remove_duplicate=False))
    moved: Moved = {}
    placed: set[nn.Module] = set()  # a quantized table stands in two places
    for name, card in places.items():
        part = parts[name if name in parts else name.rpartition(".")[0]]  # a tensor goes with the module that has it
        for owner in set(part.modules() if name in parts else [part]) - placed:
            placed.add(owner)
            if card is not None:
                _move(owner, card, moved)
            elif _own(owner):
                add_hook_to_module(owner, Visit(host, skip))
        if not hasattr(part, "_hf_hook"):
            add_hook_to_module(part, Runs(card or host, skip))
    if not hasattr(module, "_hf_hook"):
        add_hook_to_module(module, AlignDevicesHook(io_same_device=True, skip_keys=skip))


class Runs(ModelHook):  # type: ignore[misc]  # accelerate brings no types
    """The inputs of a module come to the card where it runs, but for those under the keys to skip."""

    def __init__(self, execution_device: torch.device, skip: Any) -> None:
        self.execution_device = execution_device
        self.skip = skip

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The module is about to run."""
        there = self.execution_device
        return send_to_device(args, there), send_to_device(kwargs, there, skip_keys=self.skip)

    def again(self) -> Self:
        """The same for another module."""
        return type(self)(self.execution_device, self.skip)


class Visit(Runs):
    """A module whose own tensors lie in main memory: they are on the card while it runs."""

    def __init__(self, execution_device: torch.device, skip: Any) -> None:
        super().__init__(execution_device, skip)
        self._home: dict[str, Tensor] = {}

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The tensors come."""
        if not self._home:  # a run that was ended inside the module has left them there
            self._home = _own(module)
            for name, tensor in self._home.items():
                _set(module, name, tensor.to(self.execution_device))  # of no class of its own: gradients pass
        return super().pre_forward(module, *args, **kwargs)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """They leave; a graph keeps what its gradients need."""
        for name, tensor in self._home.items():
            _set(module, name, tensor)
        self._home = {}
        return output


def take_over(old: nn.Module, new: nn.Module) -> None:
    """A module in the place of another one runs where that did, and lies where that lay."""
    hook = getattr(old, "_hf_hook", None)
    if isinstance(hook, Runs):
        if isinstance(hook, Visit):
            _move(new, torch.device("cpu"), {})
        add_hook_to_module(new, hook.again())


def input_device(module: Any, device: Device) -> torch.device:
    """Where the model's inputs go: where its embeddings are looked up."""
    embeddings: nn.Module = module.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    if isinstance(hook, Runs):
        return hook.execution_device
    return next(chain(embeddings.parameters(), embeddings.buffers())).device  # quantized ones are buffers


def _own(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the module itself, by name."""
    named = chain(module._parameters.items(), module._buffers.items())
    return {name: tensor for name, tensor in named if tensor is not None}


def _set(module: nn.Module, name: str, tensor: Any) -> None:
    (module._parameters if name in module._parameters else module._buffers)[name] = tensor


def _move(module: nn.Module, place: torch.device, moved: Moved) -> None:
    """Move the tensors of the module itself; those that share memory go on doing so."""
    for name, tensor in _own(module).items():
        if tensor.device != place:
            memory = tensor.data_ptr(), tensor.shape, tensor.stride()
            if memory not in moved:
                there = tensor.detach().to(place)
                is_weight = isinstance(tensor, nn.Parameter)
                moved[memory] = tensor, nn.Parameter(there, tensor.requires_grad) if is_weight else there
            _set(module, name, moved[memory][1])


def _size(module: nn.Module) -> int:
    """Bytes of all its tensors, shared ones once."""
    tensors = {id(tensor): tensor.nbytes for tensor in chain(module.parameters(), module.buffers())}
    return sum(tensors.values())


def _limits(device: Device) -> dict[int | str, float]:
    """Bytes to use of each card: what is free for weights, or what max_memory says; without a device_map of one."""
    backend: Any = getattr(torch, device.type, None)
    count = 0 if backend is None else backend.device_count() if device.device_map else 1
    limits: dict[int | str, float] = {card: WEIGHTS_SHARE * backend.mem_get_info(card)[0] for card in range(count)}
    limits |= {int(key): size_of(size) for key, size in device.max_memory.items() if size and key != MEMORY}
    return dict(sorted(limits.items()))
