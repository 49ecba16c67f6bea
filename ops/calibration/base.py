"""What calibration asks of a model and answers to a run, whatever framework holds the model.

A framework gives a `Network`, one whose gradients torch takes a `GradientNetwork`; calibration knows nothing else of
it, so that every method serves every framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
from torch import Tensor, nn

from slimrun.ops.format.arithmetic import QuantizedWeight
from slimrun.ops.format.linear import QuantizedLinear
from slimrun.ops.format.weights import rounding_errors
from slimrun.ops.memory import Room
from slimrun.ops.model.tables import Table

from .journal import Journal
from .wiring import Fold, Observations

Arrays = Mapping[str, npt.NDArray[Any]]
Sample = Sequence[Any] | Mapping[str, Any]  # model(*sample) or model(**sample)
Watcher = Callable[[Tensor], None]
FLOAT_SAMPLES = 5  # how many samples the float statistics look at, as msModelSlim does
# why a linear cannot be replaced
WEIGHT_READ = "the model reads the weight itself"
OTHER_INPUTS = "the model gives it more than an input"
OTHER_PRODUCT = "it computes something else than weight times input plus bias"


class Progress(Protocol):
    """Is told how much of what is done: of the part of a stage that has this name, or of all of it."""

    def __call__(self, done: int, total: int, part: str = "") -> None:
        """So many of so many."""


class Remember(Protocol):
    """Computes, or gives what was computed before; the parts of one piece of work are kept apart."""

    def __call__(self, compute: Callable[[], Arrays], part: str = "") -> Arrays:
        """The arrays of a part."""


def call(compute: Callable[[], Arrays], part: str = "") -> Arrays:
    """A `Remember` that always computes."""
    return compute()


def silent(done: int, total: int, part: str = "") -> None:
    """A `Progress` that shows nothing."""


@dataclass
class Layer:
    """One linear of the model: a row of the per-layer table."""

    name: str
    shape: tuple[int, int]
    quantized: bool
    float_inputs: bool = False  # a quantized one, whose inputs stay float where the method's do not
    observer: str = ""
    input_low: float = 0.0
    input_high: float = 0.0
    range_parameter: float = 0.0  # max|x| / std(x) of the float model's input: how heavy its tails are
    input_loss: float = float("nan")  # estimated loss by the input's grid, where the method measures it
    input_loss_left: float = float("nan")  # the same once it may have another format
    format: str = ""  # where it is not the method's
    first_peak: float = 0.0  # max|x| of the float model's input on the first sample
    sqnr_db: float = float("nan")  # signal to quantization noise of the weight
    clipped: float = 0.0  # share of weights at +-127 that the grid cuts by more than half a step
    note: str = ""  # why it is not what the method makes of linears: never reached by calibration, ...


class Procedure(Protocol):
    """How a method quantizes a loaded model in place: what runs and `slimrun.Calibrator` drive."""

    notes: list[str]  # what a reader of the scores must know of how it went, one line each
    journal: Journal  # what a run that is killed goes on from

    def quantize(self, remember: Remember = call, progress: Progress = silent) -> None:
        """Replace every selected linear by its integers.

        What depends on the float model and the texts alone goes through `remember`, which may know it already.
        """

    def calibrate(self, progress: Progress) -> list[Layer]:
        """Choose the input grids, layer after layer on the outputs of quantized predecessors."""

    def run(self) -> list[Layer]:
        """`quantize`, then `calibrate`."""


class Smoothable(Protocol):
    """What smoothing needs of a model."""

    room: Room  # for what is made of its weights

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name and shape [n, k] of every float linear, in module order."""

    def observing(self, seen: Observations) -> AbstractContextManager[None]:
        """Meanwhile every norm (by class name, with a weight [c]) and every linear reports to `seen`."""

    def foldable(self, norms: Mapping[str, Sequence[str]], run: Callable[[], Any]) -> dict[str, float]:
        """Those of the norms that can give something else if the linears that read them make up for it.

        With each what it adds to its weight: 0, or 1 where it is stored around zero. `run` runs the model.
        """

    def affine(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a norm or a linear."""

    def set_affine(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        """Give a norm or a linear this weight and this bias, one that had none too; None: what it has stays."""

    def first_tensor(self, output: Any) -> Tensor:
        """The first tensor of what a run gave."""


class Network(Smoothable, Protocol):
    """A model by its linears, as torch tensors that share their memory."""

    def kept(self) -> Mapping[str, str]:
        """Linears that stay float whatever the method, and why."""

    def quantized(self) -> list[str]:
        """Names of the linears that are quantized already."""

    def used_otherwise(self, names: Sequence[str], run: Callable[[], Any]) -> dict[str, str]:
        """Linear -> why it cannot be replaced: what the model does with it beside calling it, while `run` runs."""

    def linear(self, name: str) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """Weight and bias of a float linear, or of a table, good until the context ends."""

    def replace(self, name: str, linear: QuantizedLinear) -> Callable[[], None]:
        """Put a quantized linear in the place of the one that is there; calling what is returned puts it back."""

    def tables(self, sample: Sample | None) -> list[Table]:
        """Embeddings and output layer, with why they cannot be replaced, for which the model runs on the sample.

        None where the model does not say which they are.
        """

    def replace_table(self, table: Table, quantized: QuantizedLinear) -> None:
        """Put a quantized table in all places of the float one."""

    def leave(self, count: int) -> None:
        """Let go of the memory that replaced float linears, of `count` numbers, took."""

    def watching(self, watchers: Mapping[str, Watcher]) -> AbstractContextManager[None]:
        """Meanwhile each linear's input goes to its watcher before the linear computes.

        A watcher may change the quantized linear it was given for; what is computed next follows.
        """

    def run(self, sample: Sample) -> Any:
        """The model on one sample."""

    def tell_parts(self, sample: Sample) -> int:
        """In how many parts the model can run, tried out on a sample: before its blocks, and each of them to the next.

        1 where blocks cannot be told. To be called on the float model, before `run_part`.
        """

    def run_part(self, part: int, sample: Sample, state: Any, *, blocks_alone: bool = False) -> Any:
        """One part on one sample, given what the part before gave of it; watchers see what runs in it alone.

        With `blocks_alone` the last part ends with its block, and so does what it gives.
        """

    def in_blocks(self, names: Iterable[str]) -> bool:
        """Whether all linears of these names are in blocks, so that a walk may end with the last of those."""


class GradientNetwork(Network, Protocol):
    """A language model whose gradients torch takes; its samples are keyword arguments, `input_ids` among them."""

    model: nn.Module

    def replace(self, name: str, linear: nn.Module) -> Callable[[], None]:
        """Put any module in the place of a linear; calling what is returned puts it back."""

    def states(self, sample: Sample) -> Tensor:
        """The last hidden states [1, T, H] of a sample, before the output layer."""

    def states_part(self, part: int, sample: Sample, state: Any) -> Tensor:
        """One part of `states`, given what the part before gave, as with `run_part`.

        PassedBy where a block is given more than its state that gradients would flow through.
        """

    def leave_part(self, part: int) -> None:
        """A part has run for all samples: what files have of its weights leaves memory."""

    def own(self, weight: Tensor, room: Room | None = None) -> None:
        """A weight is about to change: it leaves the file that it was read from, for the room given or the model's."""

    @property
    def live(self) -> bool:
        """Whether what runs is the part that was asked for, not what is passed over before it."""

    def glance(self, sample: Sample) -> Any:
        """The whole model on the first tokens of a sample, for what any tokens show."""

    def head(self) -> nn.Module:
        """The output layer: hidden states -> logits."""

    def folds_of_norm(self, name: str, readers: Sequence[str]) -> list[Fold]:
        """What a norm and the linears that read it may be, for `folds_that_hold`."""

    def folds_that_hold(self, candidates: Sequence[Sequence[Fold]], run: Callable[[], Any]) -> list[Fold | None]:
        """Each candidate's first fold that changes nothing while `run` runs the model once; None where none does."""


def weight_error(weight: Tensor, quantized: QuantizedWeight) -> tuple[float, float]:
    """(signal to noise in dB, share of clipped weights) of the quantized weight."""
    noise, signal, cut = rounding_errors(weight, quantized.values, quantized.scale)
    sqnr = 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else float("inf")
    return sqnr, cut / weight.numel()
