"""GGUF: llama.cpp and what is built on it load it. Our integers as Q8_0; grids of inputs are left out.

A block of Q8_0 is a float16 step and 32 int8, so a row's step stands once a block, rounded to float16. ggml quantizes
inputs itself, in blocks of 32. Rows of q and k of a LLaMA lie in pairs, since llama.cpp rotates neighbours there where
transformers rotates halves. The experts of a layer are one tensor a projection. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, get_tensor_name_map
from torch import Tensor

from slimrun.ops.format.linear import FLOAT

from .base import AUTO, Target, cast
from .gguf_files import GgufFiles
from .gguf_models import ARCHITECTURES, check_config, write_metadata
from .gguf_vocabulary import check_vocabulary, write_vocabulary
from .plan import Abilities, Change
from .source import EXPERT, Linear, Source

Array = npt.NDArray[Any]

FILE = "model-Q8_0.gguf"
Q8_0, F32 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.F32
BLOCK, _ = GGML_QUANT_SIZES[Q8_0]
BLOCK_TYPE = np.dtype([("step", "<f2"), ("values", "i1", BLOCK)])
MATRICES = {  # of embeddings and linears that stay float
    torch.float32: F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}
ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
ROUTES = ("mlp.gate", "shared_expert_gate")  # llama.cpp wants them in float32, the second as a vector
FORMATS = ("W8A8S", "W8A8", "W8A8_DYNAMIC", "W8A16", "W8_TABLE")


class Entry(NamedTuple):
    """A tensor of the file: those of the model that are stacked in it, or the only one."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    keys: list[str]


@dataclass(frozen=True)
class Gguf(Target):
    """One GGUF file; `dtype` is that of float embeddings and linears, auto: float16 for float32."""

    name: ClassVar[str] = "gguf"
    float_inputs: ClassVar[bool] = True
    abilities: ClassVar[Abilities] = Abilities(
        dict.fromkeys(FORMATS, Q8_0.name),
        fuses=False,
        quantizes_head=True,
        mixtures=("mixtral", "qwen2_moe", "qwen3_moe"),
        experts=FORMATS,
    )

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse what llama.cpp runs otherwise."""
        super().check(config)
        check_config(config)

    def check_tokenizer(self, content: Mapping[str, Any] | None) -> None:
        """Refuse one that llama.cpp does not know."""
        check_vocabulary(content)

    def dtype_of(self, source: Source) -> torch.dtype:
        """Float16 for float32: embeddings twice as large would be slower and no better."""
        dtype = super().dtype_of(source)
        return torch.float16 if self.dtype == AUTO and dtype == torch.float32 else dtype

    def write(self, source: Source, plan: Mapping[str, str], folder: Path) -> list[Change]:
        """Metadata, vocabulary and tensors."""
        model = ARCHITECTURES[source.config["model_type"]]
        names = get_tensor_name_map(model.kind, source.config["num_hidden_layers"])
        entries = _entries(source, plan, MATRICES[self.dtype_of(source)])
        writer = GGUFWriter(folder / FILE, model.name)
        try:
            write_metadata(writer, source.config)
            write_vocabulary(writer, source)
            for key, (shape, kind, _) in entries.items():
                name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise ValueError(f"{key} is no tensor of this model as llama.cpp knows it")
                block, block_bytes = GGML_QUANT_SIZES[kind]
                writer.add_tensor_info(name, shape, np.dtype(np.float32), prod(shape) // block * block_bytes, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for _, kind, keys in entries.values():
                writer.write_tensor_data(_stacked([partial(self._content, source, plan, key, kind) for key in keys]))
        finally:
            writer.close()
        changes = [Change("inputs stay float", "all linears", "llama.cpp quantizes inputs itself, 32 at a time")]
        if model.neighbours:
            why = "llama.cpp rotates neighbours, transformers halves"
            changes.append(Change("rows in pairs", ", ".join(ROTATED), why))
        return changes

    def files(self, folder: Path) -> GgufFiles:
        """The file, read by the package gguf."""
        return GgufFiles(folder / FILE)

    def load(self, folder: Path) -> Any:
        """The model in transformers: weights times their steps; None of a Mixtral, which it takes for a LLaMA."""
        from slimrun.ops.model.auto import AutoModelForCausalLM

        if "llama.expert_count" in GGUFReader(folder / FILE).fields:
            return None
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)

    def command(self, folder: Path) -> str:
        """The command that serves it in llama.cpp."""
        return f"llama-server -m {folder / FILE}"

    def _content(self, source: Source, plan: Mapping[str, str], key: str, kind: GGMLQuantizationType) -> Array:
        """The bytes of a tensor, a row a line."""
        name, _, suffix = key.rpartition(".")
        if name not in source.types:
            content = _array(self.cast(source, key), kind)
        elif suffix != "weight":
            content = _array(source.linear(name).model_bias(), kind)
        elif plan[name] == FLOAT:
            content = _array(cast(key, source.linear(name).weight(), self.dtype_of(source)), kind)
        else:
            content = _blocks(source.linear(name))
        if not name.endswith(ROTATED) or not ARCHITECTURES[source.config["model_type"]].neighbours:
            return content
        heads = source.config["num_key_value_heads" if name.endswith("k_proj") else "num_attention_heads"]
        halves = content.reshape(heads, 2, -1, *content.shape[1:])  # of each head, the two that are rotated together
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(content.shape)


def _entries(source: Source, plan: Mapping[str, str], matrices: GGMLQuantizationType) -> dict[str, Entry]:
    """What is written, in this order; ValueError names a linear that Q8_0 cannot hold."""
    expected = source.expected
    entries: dict[str, Entry] = {}
    for key in sorted(source.keys(), key=_order):
        name, _, suffix = key.rpartition(".")
        if expected is None or key not in expected:
            raise ValueError(f"{key} is no tensor of the float model")
        shape = expected[key]
        if suffix == "weight" and plan.get(name, FLOAT) != FLOAT:
            if shape[1] % BLOCK:
                raise ValueError(f"{key} has {shape[1]} columns; Q8_0 wants a multiple of {BLOCK}")
            kind = Q8_0
        else:
            kind = matrices if len(shape) == 2 and not name.endswith(ROUTES) else F32
        expert = EXPERT.match(key)
        if expert is None:
            entries[key] = Entry(shape[-1:] if name.endswith(ROUTES[1]) else shape, kind, [key])
            continue
        stack = f"{expert[1]}.{name.rpartition('.')[2]}.{suffix}"
        keys = [*entries[stack].keys, key] if stack in entries else [key]
        entries[stack] = Entry((len(keys), *shape), kind, keys)
    return entries


def _order(key: str) -> list[tuple[int, str]]:
    """What keys are sorted by: numbers in them by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]


def _stacked(parts: Sequence[Callable[[], Array]]) -> Array:
    """The contents one after the other; with one of them beside the stack at a time."""
    first = parts[0]()
    if len(parts) == 1:
        return first
    stack = np.empty((len(parts), *first.shape), first.dtype)
    stack[0] = first
    for number, part in enumerate(parts[1:], start=1):
        stack[number] = part()
    return stack


def _blocks(linear: Linear) -> Array:
    """uint8 [n, k / 32 * 34]."""
    rows, columns = linear.values.shape
    blocks = np.empty((rows, columns // BLOCK), BLOCK_TYPE)
    blocks["values"] = linear.values.numpy().reshape(rows, -1, BLOCK)
    blocks["step"] = linear.step.numpy().astype("<f2").reshape(-1, 1)
    return blocks.view(np.uint8).reshape(rows, -1)


def _array(tensor: Tensor | None, kind: GGMLQuantizationType) -> Array:
    if tensor is None:
        raise ValueError("there is no bias to write")
    if kind == GGMLQuantizationType.BF16:
        return tensor.view(torch.int16).numpy()
    return tensor.to(torch.float32 if kind == F32 else torch.float16).numpy()
