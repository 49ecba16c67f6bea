"""A GGUF file read back: offsets by the package gguf, everything else from the file's own bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGUFReader
from torch import Tensor

from .checks import Held

NAMES = {  # of a layer's tensors there -> in transformers
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj", "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj", "ffn_down_exps": "mlp.experts.{}.down_proj",
}  # fmt: skip
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PAIRED = "llama"  # the architecture whose rows of q and k lie in pairs
VECTOR = "shared_expert_gate.weight"  # there; a matrix of one row in transformers
BLOCK_BYTES = 34  # of Q8_0: two of a float16, 32 of int8

Place = tuple[int, int, str, tuple[int, ...]]  # begin, bytes, type, shape


class GgufFiles:
    """What the file holds, its rows in the order of transformers again; nothing of it stays mapped."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self._path = path
        kind = reader.fields["general.architecture"].contents()
        heads = {"q_proj": "head_count", "k_proj": "head_count_kv"} if kind == PAIRED else {}
        self._heads = {
            name: int(reader.fields[f"{kind}.attention.{field}"].contents()) for name, field in heads.items()
        }
        self._places: dict[str, Place] = {}
        for tensor in reader.tensors:
            begin, size, stored = int(tensor.data_offset), int(tensor.n_bytes), str(tensor.tensor_type.name)
            name, shape = _name(str(tensor.name)), tuple(int(size) for size in tensor.shape[::-1])
            if "{}" not in name:
                self._places[name] = (begin, size, stored, shape)
                continue
            size //= shape[0]
            for number in range(shape[0]):
                self._places[name.format(number)] = (begin + number * size, size, stored, shape[1:])

    def keys(self) -> set[str]:
        """Names of the float model's tensors."""
        return set(self._places)

    def linear(self, name: str, kind: str) -> Held:
        """Its integers, and the step of each row; ValueError when blocks of a row have several."""
        _, _, stored, shape = self._places[f"{name}.weight"]
        if stored != kind:
            raise ValueError(f"{name} is {stored}, expected {kind}")
        blocks = self._bytes(f"{name}.weight").reshape(shape[0], -1, BLOCK_BYTES)
        steps = blocks[:, :, :2].copy().view("<f2")[:, :, 0].astype(np.float32)
        if (steps != steps[:, :1]).any():
            raise ValueError(f"{name}: blocks of one row have several steps")
        values = torch.from_numpy(blocks[:, :, 2:].copy().view(np.int8).reshape(shape))
        bias = self.tensor(f"{name}.bias") if f"{name}.bias" in self._places else None
        return Held(self._unpaired(name, values), self._unpaired(name, torch.from_numpy(steps[:, 0].copy())), bias)

    def tensor(self, key: str) -> Tensor:
        """The tensor as it is stored."""
        _, _, kind, shape = self._places[key]
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        shape = (1, *shape) if key.endswith(VECTOR) else shape
        return self._unpaired(key.rpartition(".")[0], torch.from_numpy(self._bytes(key)).view(dtype).reshape(shape))

    def _bytes(self, key: str) -> npt.NDArray[np.uint8]:
        offset, size, _, _ = self._places[key]
        return np.fromfile(self._path, np.uint8, size, offset=offset)

    def _unpaired(self, name: str, rows: Tensor) -> Tensor:
        """Row 2i + j of a head there is row i + j * width / 2 in transformers."""
        heads = self._heads.get(name.rpartition(".")[2])
        if heads is None:
            return rows
        width = len(rows) // heads
        head, row = torch.arange(len(rows)) // width, torch.arange(len(rows)) % width
        unpaired = torch.empty_like(rows)
        unpaired[head * width + row // 2 + row % 2 * (width // 2)] = rows
        return unpaired


def _name(name: str) -> str:
    """transformers' name of a tensor."""
    stem, _, suffix = name.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{suffix}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{suffix}"
