"""A bundle read linear by linear, so that a model larger than memory is rewritten a few tensors at a time."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from slimrun.ops import compress
from slimrun.ops.bundle.description import damage, named, read_description, read_object, weight_file
from slimrun.ops.bundle.manifest import check_contents, check_names, checksum, read_manifest
from slimrun.ops.bundle.reader import decode_numbers
from slimrun.ops.bundle.references import CONFIG
from slimrun.ops.compress.base import Limited
from slimrun.ops.format.arithmetic import ActivationGrid
from slimrun.ops.format.linear import (
    CODED_NUMBERS,
    FLOAT,
    Int8Linear,
    QuantizedLinear,
    WeightOnlyLinear,
    restored_linear,
)
from slimrun.ops.format.weights import row_sums
from slimrun.ops.memory import release
from slimrun.ops.weights.base import TensorFile, open_file

from .ahead import ahead
from .float_model import Shapes, float_model

EXPERT = re.compile(r"(.+\.experts)\.\d+\.")  # how the name of one begins
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOKENIZER = "tokenizer.json"
MOST_UNSTORED = 1000  # parameters that no file holds: tied ones

Seen = tuple[torch.dtype, torch.Size, int]  # what a tensor is known again by: its checksum is the last


@dataclass(frozen=True)
class Linear:
    """A quantized linear [n, k] as it is deployed, every number with its full precision."""

    name: str
    kind: str  # its format: W8A8S, W8A8, W8A8_DYNAMIC or W8A16
    module: QuantizedLinear
    values: Tensor  # int8 [n, k]
    step: Tensor  # float32 [n]: weight ~ values * step
    bias: Tensor | None  # float32 [n]; with a static grid the one that quant_bias stands for
    grid: ActivationGrid | None  # of its input
    deq_scale: Tensor | None  # float32 [n], with a grid
    quant_bias: Tensor | None  # int32 [n], with a grid
    sums: Tensor | None  # int32 [n], of the rows of values, with a grid
    model_has_bias: bool  # whether the float model has one; smoothing gives one to linears that have none

    def model_bias(self) -> Tensor | None:
        """float32 [n], to put where the float model has one; ValueError when it has none to put it in."""
        if self.bias is not None and not self.model_has_bias:
            raise ValueError(f"{self.name}: its quant_bias holds a bias, and the float model has none to put it in")
        return self.bias

    def weight(self) -> Tensor:
        """float32 [n, k]."""
        return self.values * self.step.reshape(-1, 1)

    def rows(self, rows: slice) -> QuantizedLinear:
        """The module that has some of its rows alone."""
        size, columns = self.values.shape
        stored = self.module.stored().items()
        own = {suffix: part[rows].contiguous() if len(part) == size else part for suffix, part in stored}
        return restored_linear(self.kind, own, (len(own["weight"]), columns))


class Source:
    """The files of a bundle: names and types at once, tensors as they are asked for, each held against the manifest."""

    def __init__(self, folder: Path) -> None:
        """ValueError names the file that is damaged."""
        description = read_description(folder)
        self.folder = folder
        self.codec = description.codec()
        self._seen: dict[str, Seen] = {}  # tensors and weights that were decoded
        self._checked: set[str] = set()  # what the manifest says is so
        self._manifest = read_manifest(folder)
        self.weights = weight_file(folder, description.quant_type)
        with named(self.weights):
            self._file: TensorFile = open_file(self.weights)
            stored = self._file.headers()
        self.shapes = {key: tuple(header.shape) for key, header in stored.items()}
        self._coded = {key for key, kind in description.types.items() if kind in CODED_NUMBERS and key in stored}
        if self._manifest is not None:
            check_names(self._manifest, self.weights, stored)
        for key in stored:
            if key not in description.types:
                raise damage(self.weights, f"holds {key}, which its description does not name")
        self.config = read_object(folder / CONFIG)
        self.types = _formats(stored, description.types, coded=bool(self.codec.container))  # in the order of the file
        self.floats = [key for key in stored if key.rpartition(".")[0] not in self.types]  # names of all other tensors
        self._parts: dict[str, list[str]] = defaultdict(list)
        for name, _, suffix in (key.rpartition(".") for key in stored):
            self._parts[name].append(suffix)
        for key in self._coded.intersection(self.floats):
            packed = self._read([key])[key].numpy()
            with named(self.weights):
                self.shapes[key] = compress.float_header(packed)[1]

    @property
    def dtype(self) -> torch.dtype:
        """The model's, in which its float tensors and scales are stored; ValueError when config.json names none."""
        return _dtype(self.config, self.folder / CONFIG)

    @cached_property
    def tokenizer(self) -> dict[str, Any] | None:
        """What tokenizer.json holds, None when there is none."""
        file = self.folder / TOKENIZER
        return read_object(file) if file.is_file() else None

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embeddings: a quantized one is not, whatever the config says."""
        return bool(self.config.get("tie_word_embeddings")) and "lm_head.weight" not in self.keys()

    def keys(self) -> set[str]:
        """Names of the float model's tensors: every linear's weight and bias, and all that is stored as it was."""
        biases = {f"{name}.bias" for name in self.types if self._model_has_bias(name)}
        return {*self.floats, *biases, *(f"{name}.weight" for name in self.types)}

    def linear(self, name: str) -> Linear:
        """The linear, its weight decoded; ValueError names the tensor that is damaged."""
        stored = self._read(f"{name}.{part}" for part in self._parts[name] if part in self.codec.parts)
        coded = {key.removeprefix(f"{name}."): tensor.numpy() for key, tensor in stored.items()}
        with named(self.weights):
            limited = Limited(sum(part.nbytes for part in coded.values()))
            values = torch.from_numpy(self.codec.decode(coded, limited))
        release(stored.values())
        self._seen[f"{name}.weight"] = _seen(values)
        return self._with_values(name, values)

    def linear_again(self, name: str, values: Tensor) -> Linear:
        """The linear once more with int8 values [n, k] read elsewhere, which is not decoded a second time.

        ValueError unless their checksum is that of its own.
        """
        if f"{name}.weight" not in self._seen:
            self.linear(name)
        if _seen(values) != self._seen[f"{name}.weight"]:
            raise ValueError(f"{name}: the integers differ from the bundle's")
        return self._with_values(name, values)

    def linears(self, names: Iterable[str]) -> Iterator[Linear]:
        """`linear` of each, the next one decoded meanwhile."""
        return ahead(self.linear, names)

    def stored(self) -> dict[str, Tensor]:
        """Every tensor of the weight file as it is stored, still coded."""
        return self._read(list(self.shapes))

    def tensor(self, key: str) -> Tensor:
        """One of `floats`."""
        tensor = self._decoded(key, self._read([key])[key])
        self._seen[key] = _seen(tensor)
        return tensor

    def is_tensor(self, key: str, numbers: Tensor, dtype: torch.dtype) -> bool:
        """Whether these numbers, read elsewhere, are that one of `floats`, in `dtype` if it has the model's."""
        if key not in self._seen:
            self.tensor(key)
        own = self._seen[key][0]
        if own != self.dtype or own == dtype:
            return _seen(numbers.to(own)) == self._seen[key]
        return _seen(numbers.to(dtype)) == _seen(self.tensor(key).to(dtype))

    def grid(self, name: str) -> tuple[float, float] | None:
        """Scale and offset of the linear's input, None where it has no grid; reads no weight."""
        keys = [f"{name}.input_scale", f"{name}.input_offset"]
        if not {"input_scale", "input_offset"} <= set(self._parts[name]):
            return None
        scale, offset = self._read(keys).values()
        return float(scale), float(offset)

    @cached_property
    def shifts(self) -> list[str]:
        """Those of `floats` that the float model does not have: smoothing gave them to norms."""
        return [key for key in self.floats if self.expected is not None and key not in self.expected]

    @cached_property
    def expected(self) -> Shapes | None:
        """The shape of every tensor of the float model by name; None when that is not known here."""
        return float_model(self.folder, self.config, self._manifest, MOST_UNSTORED + 2 * len(self.shapes))

    def _decoded(self, key: str, stored: Tensor) -> Tensor:
        """A tensor other than a weight, of what the file holds of it."""
        if key not in self._coded:
            return stored
        with named(self.weights):
            numbers = decode_numbers(stored.numpy(), Limited(stored.nbytes))
        release([stored])
        return numbers

    def _model_has_bias(self, name: str) -> bool:
        has = self.expected is None or f"{name}.bias" in self.expected
        return has and "bias" in self._parts[name]

    def _read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """The tensors, mapped: their pages count as memory until they are released."""
        with named(self.weights):
            tensors = {key: self._file.read(key) for key in keys}
        if self._manifest is not None:
            new = {key: tensor for key, tensor in tensors.items() if key not in self._checked}
            check_contents(self._manifest, self.weights, new)
            self._checked.update(new)
        return tensors

    def _with_values(self, name: str, values: Tensor) -> Linear:
        """The linear of its stored tensors and these int8 values [n, k]."""
        stored = self._read(f"{name}.{part}" for part in self._parts[name] if part not in self.codec.parts)
        own = {key.removeprefix(f"{name}."): self._decoded(key, tensor) for key, tensor in stored.items()}
        with named(self.weights):
            rows, columns = values.shape
            module = restored_linear(self.types[name], own | {"weight": values}, (rows, columns))
        return _linear(name, self.types[name], module, self._model_has_bias(name))


def _formats(stored: Mapping[str, Tensor], types: Mapping[str, str], coded: bool) -> dict[str, str]:
    """The format of each quantized linear, whether coded or not."""
    weights = [key for key, header in stored.items() if header.dtype == torch.int8 and key.endswith(".weight")]
    kinds = {key.removesuffix(".weight"): types[key] for key in weights if types[key] != FLOAT}
    return {name: kind.removesuffix("C") if coded else kind for name, kind in kinds.items()}


def _dtype(config: Mapping[str, Any], file: Path) -> torch.dtype:
    said = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    if said not in DTYPES:
        raise damage(file, f"dtype is {said}, allowed: {', '.join(DTYPES)}")
    return DTYPES[said]


def _seen(tensor: Tensor) -> Seen:
    return tensor.dtype, tensor.shape, checksum(tensor)


def _linear(name: str, kind: str, module: QuantizedLinear, model_has_bias: bool) -> Linear:
    rows, values = module.out_features, module.weight
    if isinstance(module, Int8Linear):
        deq_scale = module.deq_scale.reshape(-1).expand(rows).contiguous()
        step, sums = step_of(deq_scale, module.grid.scale), row_sums(values)
        shift = module.quant_bias + module.grid.offset * sums
        bias = shift * deq_scale if module.bias is not None or bool(shift.any()) else None
        folded = deq_scale, module.quant_bias, sums
        return Linear(name, kind, module, values, step, bias, module.grid, *folded, model_has_bias)
    step = cast(WeightOnlyLinear, module).weight_scale.to(torch.float32).reshape(-1).expand(rows).contiguous()
    bias = None if module.bias is None else module.bias.to(torch.float32)
    return Linear(name, kind, module, values, step, bias, None, None, None, None, model_has_bias)


def step_of(deq_scale: Tensor, input_scale: float) -> Tensor:
    """The float32 step [n] whose product with input_scale is deq_scale [n]; the nearest where there is none."""
    nearest = deq_scale / input_scale
    step = nearest
    for candidate in (torch.nextafter(nearest, torch.zeros(1)), torch.nextafter(nearest, torch.full((1,), torch.inf))):
        exact = step * input_scale == deq_scale
        step = torch.where(exact, step, torch.where(candidate * input_scale == deq_scale, candidate, step))
    return step
