"""Two pretend cards behind the name of the vendor's package: tensors in main memory that refuse to meet across cards.

Built on torch's PrivateUse1 key and its experimental Python backend, so it runs in a process of its own only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

CARDS = 2
COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class CardTensor(torch.Tensor):
    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor, index: int = 0, requires_grad: bool | None = None, **_: Any) -> Any:
        if requires_grad is not None:  # how accelerate makes a parameter of the same class
            return torch.nn.Parameter(raw.detach(), requires_grad)
        card = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            device=torch.device("npu", index),
        )  # fmt: skip
        card.raw = raw
        return card

    __torch_function__ = torch._C._disabled_torch_function_impl

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def tolist(self) -> Any:
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation in main memory, its result on the card of its arguments; RuntimeError when these differ."""
    flat = pytree.tree_leaves((args, kwargs))
    cards = {leaf.device.index for leaf in flat if isinstance(leaf, CardTensor)}
    wanted = kwargs.get("device")
    if not cards and (wanted is None or torch.device(wanted).type != "npu"):
        return func(*args, **kwargs)
    if func not in COPIES:
        others = [t for t in flat if isinstance(t, torch.Tensor) and not isinstance(t, CardTensor) and t.ndim]
        if len(cards) > 1 or (cards and others):
            raise RuntimeError(f"{func}: expected all tensors on one device, found cards {cards} and {others[:1]}")
    if wanted is not None:
        wanted = torch.device(wanted)
        index = (wanted.index or 0) if wanted.type == "npu" else None
    else:
        index = next(iter(cards), None)
    if func is torch.ops.aten.copy_.default:
        index = args[0].device.index if isinstance(args[0], CardTensor) else None
    if index is not None and wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if index is not None and index >= CARDS:
        raise RuntimeError(f"no card {index}")
    raw_args, raw_kwargs = pytree.tree_map_only(CardTensor, lambda card: card.raw, (args, kwargs))
    out = func(*raw_args, **raw_kwargs)
    if index is None:
        return out
    if func._schema.is_mutable and args and isinstance(args[0], torch.Tensor):
        return args[0]
    return pytree.tree_map_only(torch.Tensor, lambda tensor: CardTensor(tensor, index), out)


class Cards(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Backend:
    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return CARDS

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def mem_get_info(index: int = 0) -> tuple[int, int]:
        return 1 << 30, 1 << 30

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None: ...

    @staticmethod
    def empty_cache() -> None: ...

    @staticmethod
    def memory_allocated(index: int = 0) -> int:
        return 0

    memory_reserved = memory_allocated


_setup_privateuseone_for_python_backend("npu", Backend())
torch.autograd.set_multithreading_enabled(False)  # its threads know one card of such a backend


def _empty(name: str) -> Any:
    packet, _, overload = name.partition(".")
    func = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return lambda *args, **kwargs: compute(func, args, kwargs)


_LIBRARY = torch.library.Library("aten", "IMPL")  # loading threads are outside the mode below
for _name in ("empty.memory_format", "empty_strided"):
    _LIBRARY.impl(_name, _empty(_name), "PrivateUse1")


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    getattr(target, "raw", target).copy_(getattr(source, "raw", source))
    return target


_LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
_ROOT = Cards()
_ROOT.__enter__()


def __getattr__(name: str) -> Any:
    if name.startswith("npu_"):
        return None
    raise AttributeError(name)
