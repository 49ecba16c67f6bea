"""GGUF: llama.cpp and what is built on it load it. Our integers as Q8_0; grids of inputs are left out.

A block of Q8_0 is a float16 step and 32 int8, so a row's step stands once a block, rounded to float16. ggml quantizes
inputs itself, in blocks of 32. Rows of q and k lie in pairs there, since llama.cpp rotates neighbours where
transformers rotates halves. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from torch import Tensor

from .base import AUTO, Target
from .gguf_files import GgufFiles
from .gguf_vocabulary import check_vocabulary, write_vocabulary
from .plan import Abilities, Change
from .source import Linear, Source

Array = npt.NDArray[Any]
Entry = tuple[tuple[int, ...], GGMLQuantizationType]  # shape and type of a tensor

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
TAKEN = {"model_type": "llama", "hidden_act": "silu", "rope_type": "default"}


@dataclass(frozen=True)
class Gguf(Target):
    """One GGUF file of a LLaMA; `dtype` is that of float embeddings and linears, auto: float16 for float32."""

    name: ClassVar[str] = "gguf"
    float_inputs: ClassVar[bool] = True
    abilities: ClassVar[Abilities] = Abilities(
        dict.fromkeys(("W8A8S", "W8A8", "W8A8_DYNAMIC", "W8A16", "W8_TABLE"), Q8_0.name),
        fuses=False,
        quantizes_head=True,
    )

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse what is no LLaMA as llama.cpp runs it."""
        super().check(config)
        rope = config.get("rope_parameters") or {}
        for key, allowed in TAKEN.items():
            said = (rope if key == "rope_type" else config).get(key, allowed)
            if said != allowed:
                raise ValueError(f"config.json: {key}={said} is not written as gguf; allowed: {allowed}")

    def check_tokenizer(self, content: Mapping[str, Any] | None) -> None:
        """Refuse one that llama.cpp does not know."""
        check_vocabulary(content)

    def dtype_of(self, source: Source) -> torch.dtype:
        """Float16 for float32: embeddings twice as large would be slower and no better."""
        dtype = super().dtype_of(source)
        return torch.float16 if self.dtype == AUTO and dtype == torch.float32 else dtype

    def write(self, source: Source, plan: Mapping[str, str], folder: Path) -> list[Change]:
        """Metadata, vocabulary and tensors."""
        names = get_tensor_name_map(MODEL_ARCH.LLAMA, source.config["num_hidden_layers"])
        entries = _entries(source, MATRICES[self.dtype_of(source)])
        writer = GGUFWriter(folder / FILE, "llama")
        try:
            _write_metadata(writer, source.config)
            write_vocabulary(writer, source)
            for key, (shape, kind) in entries.items():
                name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise ValueError(f"{key} is no tensor of a LLaMA as llama.cpp knows it")
                block, block_bytes = GGML_QUANT_SIZES[kind]
                writer.add_tensor_info(name, shape, np.dtype(np.float32), prod(shape) // block * block_bytes, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for key, (_, kind) in entries.items():
                writer.write_tensor_data(self._content(source, key, kind))
        finally:
            writer.close()
        return [
            Change("inputs stay float", "all linears", "llama.cpp quantizes inputs itself, 32 at a time"),
            Change("rows in pairs", ", ".join(ROTATED), "llama.cpp rotates neighbours, transformers halves"),
        ]

    def files(self, folder: Path) -> GgufFiles:
        """The file, read by the package gguf."""
        return GgufFiles(folder / FILE)

    def load(self, folder: Path) -> Any:
        """The model in transformers, which reads integers times their steps."""
        from slimrun.ops.model.auto import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)

    def command(self, folder: Path) -> str:
        """The command that serves it in llama.cpp."""
        return f"llama-server -m {folder / FILE}"

    def _content(self, source: Source, key: str, kind: GGMLQuantizationType) -> Array:
        """The bytes of a tensor, a row a line."""
        name, _, suffix = key.rpartition(".")
        if name not in source.types:
            content = _array(self.cast(source, key), kind)
        elif suffix == "weight":
            content = _blocks(source.linear(name))
        else:
            content = _array(source.linear(name).model_bias(), kind)
        if not name.endswith(ROTATED):
            return content
        heads = source.config["num_key_value_heads" if name.endswith("k_proj") else "num_attention_heads"]
        halves = content.reshape(heads, 2, -1, *content.shape[1:])  # of each head, the two that are rotated together
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(content.shape)


def _entries(source: Source, matrices: GGMLQuantizationType) -> dict[str, Entry]:
    """What is written, in this order; ValueError names a linear that Q8_0 cannot hold."""
    expected = source.expected
    entries: dict[str, Entry] = {}
    for key in sorted(source.keys()):
        name, _, suffix = key.rpartition(".")
        if expected is None or key not in expected:
            raise ValueError(f"{key} is no tensor of the float model")
        shape = tuple(expected[key].shape)
        if name in source.types and suffix == "weight":
            if shape[1] % BLOCK:
                raise ValueError(f"{key} has {shape[1]} columns; Q8_0 wants a multiple of {BLOCK}")
            entries[key] = (shape, Q8_0)
        else:
            entries[key] = (shape, matrices if len(shape) == 2 else F32)
    return entries


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


def _write_metadata(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config
    writer.add_name(str(config.get("_model_name_or_path") or "slimrun"))
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
