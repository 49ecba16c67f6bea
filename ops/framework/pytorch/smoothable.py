"""A torch model as smoothing sees it: its norms, the linears that read them, and what both can take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from slimrun.ops.calibration.blocks import Blocks
from slimrun.ops.calibration.wiring import Fold, Observations, folds_of_norm
from slimrun.ops.memory import Room, in_files, release
from slimrun.ops.model.linears import linear_names

from .mapped import move
from .probe import folds_that_hold, takes_bias


class TorchSmoothable:
    """A `slimrun.ops.calibration.base.Smoothable`; what is seen is of the part of the model that was asked for."""

    def __init__(self, model: nn.Module, room: Room) -> None:
        self.model = model
        self.room = room
        self._blocks = Blocks("forward", Tensor, nn.Module.modules)

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name and shape [n, k] of every `nn.Linear`, in module order."""
        return linear_names(self.model)

    @contextmanager
    def observing(self, seen: Observations) -> Iterator[None]:
        """Meanwhile norms and linears report what they give and read."""
        handles, live = [], self._blocks.while_live
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear):
                handles.append(module.register_forward_pre_hook(reports_input(live(partial(seen.read, name)))))
            elif "Norm" in type(module).__name__ and getattr(getattr(module, "weight", None), "ndim", 0) == 1:
                handles.append(module.register_forward_hook(_reports_output(live(partial(seen.gave, name)))))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def affine(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a norm or a linear."""
        module: Any = self.model.get_submodule(name)
        return module.weight, getattr(module, "bias", None)

    def foldable(self, norms: Mapping[str, Sequence[str]], run: Callable[[], Any]) -> dict[str, float]:
        """Norms that can give something else, by what their blocks then give; with each its offset."""
        candidates = {
            name: folds_of_norm(name, readers, len(self.affine(name)[0]))
            for name, readers in norms.items()
            if all(takes_bias(self.model.get_submodule(part)) for part in (name, *readers))
        }
        folds = self.folds_that_hold(list(candidates.values()), run)
        return {fold.producer: fold.offset for fold in folds if fold is not None}

    def set_affine(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        """Give a norm or a linear this weight and this bias; None: what it has stays."""
        module: Any = self.model.get_submodule(name)
        self.own(module.weight)
        module.weight.copy_(weight)
        if bias is not None:
            add_bias(module, bias.to(module.weight.dtype))

    def own(self, weight: Tensor, room: Room | None = None) -> None:
        """Before it changes: a weight leaves the file that it was read from, for the room given or the model's own.

        A changed page of that file would stay in memory as long as anything of the file does. A weight that no file has
        stays where it is.
        """
        room = room or self.room
        if weight.device.type == "cpu" and in_files([weight])[0]:
            before = weight.data
            shared = [one for one in self.model.parameters() if one.data_ptr() == weight.data_ptr()]
            move(shared, lambda old: room.empty(old.shape, old.dtype).copy_(old))
            release([before])

    def first_tensor(self, output: Any) -> Tensor:
        """The first tensor of what the model gave: a tensor, a tuple, or a ModelOutput."""
        tensor = output if isinstance(output, Tensor) else output[0]
        assert isinstance(tensor, Tensor)
        return tensor

    def folds_that_hold(self, candidates: Sequence[Sequence[Fold]], run: Callable[[], Any]) -> list[Fold | None]:
        """The first of each candidate's folds that changes nothing while `run` runs the model once."""
        return folds_that_hold(self.model, candidates, run)


def add_bias(module: nn.Module, bias: Tensor) -> None:
    """Give a norm or linear that has none a bias [c], stored as `.bias` beside its `.weight`."""
    had = getattr(module, "bias", None)
    if had is None:
        known = "bias" in module._parameters  # as None: linears and nn.LayerNorm, whose own forward adds it
        module.register_parameter("bias", nn.Parameter(bias, requires_grad=False))
        if not known:
            module.register_forward_hook(lambda norm, _, out: out + norm.bias.to(out.device))
    else:
        had.copy_(bias)


def reports_input(report: Callable[..., None]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that reports what a module is given."""
    return lambda _, inputs: report(inputs[0])


def _reports_output(report: Callable[..., None]) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda _, __, out: report(out, out)
