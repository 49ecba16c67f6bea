"""compressed-tensors: vLLM on CUDA and CPU, SGLang and transformers load it.

Static grids are `int-quantized` with an asymmetric input a tensor, dynamic ones with a symmetric input a token; weights
alone are `pack-quantized`, four to an int32. Nothing is folded there, so the bias is the one quant_bias stands for.
Experts have a step a token, or are weights alone: vLLM's fused product takes no other.
Source: https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from slimrun.ops.format.linear import FLOAT
from slimrun.ops.memory import release

from .base import Target, cast
from .checks import Held
from .description import write_description
from .plan import Abilities, Change
from .shards import Folder, ShardWriter, check_size
from .source import EXPERT, Linear, Source

STEM, INT8 = "model", "int8"
PACKED = 4  # int8 in an int32
WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
STATIC_INPUT = {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "tensor", "dynamic": False}
TOKEN_INPUT = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
STATIC, DYNAMIC, ALONE = "static", "dynamic", "weights alone"
MIXTRAL = {".mlp.": ".block_sparse_moe.", ".gate_proj": ".w1", ".up_proj": ".w3", ".down_proj": ".w2"}
INPUTS: dict[str, dict[str, Any] | None] = {STATIC: STATIC_INPUT, DYNAMIC: TOKEN_INPUT, ALONE: None}


@dataclass(frozen=True)
class CompressedTensors(Target):
    """The files of compressed-tensors; `shard_gb` is the most that one weight file takes, in 10**9 bytes.

    `weights_alone` says what linears with float inputs are: "int8", or "float" for vLLM on a CPU, which has no kernel
    for int8 weights and float inputs.
    """

    name: ClassVar[str] = "compressed-tensors"
    abilities: ClassVar[Abilities] = Abilities(
        {"W8A8S": STATIC, "W8A8": STATIC, "W8A8_DYNAMIC": DYNAMIC, "W8A16": ALONE},
        mixtures=("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3"),
        experts=("W8A8_DYNAMIC", "W8A16"),
        absorbed=("kv_b_proj",),
    )

    shard_gb: float = 5.0
    weights_alone: str = INT8

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        super().__post_init__()
        check_size(self.shard_gb)
        if self.weights_alone not in (INT8, FLOAT.lower()):
            raise ValueError(f"weights_alone={self.weights_alone} is not known; allowed: {INT8}, {FLOAT.lower()}")

    def engine(self) -> Abilities:
        """What the engine can hold: no weights-only linears where those are to be float."""
        kinds = self.abilities.formats.items()
        chosen = {kind: there for kind, there in kinds if self.weights_alone == INT8 or there != ALONE}
        return replace(self.abilities, formats=chosen)

    def write(self, source: Source, plan: Mapping[str, str], folder: Path) -> list[Change]:
        """Weights and their description."""
        writer = ShardWriter(folder, STEM, self.shard_gb, _names(source))
        for linear in source.linears(plan):
            for suffix, tensor in _stored(linear, plan[linear.name], self.dtype_of(source)).items():
                writer.add(f"{_name(source, linear.name)}.{suffix}", tensor)
        for key in source.floats:
            writer.add(_name(source, key), self.cast(source, key))
        writer.close()
        quantizes = any(kind != FLOAT for kind in plan.values())
        more = {"quantization_config": _quantization(source, plan)} if quantizes else {}
        changes = write_description(source, self.dtype_of(source), folder, **more)
        if any(kind == DYNAMIC and EXPERT.match(name) for name, kind in plan.items()):
            changes.append(Change("not in transformers", "experts", "it reads those with float inputs only"))
        return changes

    def files(self, folder: Path) -> CompressedFiles:
        """The folder's files, read by safetensors."""
        return CompressedFiles(folder)

    def load(self, folder: Path) -> Any:
        """The model in transformers, which emulates the integers; None with experts that take a step a token."""
        from slimrun.ops.model.auto import AutoModelForCausalLM

        if any(EXPERT.match(key) and key.endswith(".weight") for key in Folder(folder).int8()):
            return None
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.inference_mode():
            model(torch.zeros(1, 1, dtype=torch.long))  # unpacks weights, where its parts would not
        return model

    def command(self, folder: Path) -> str:
        """The command that serves it in vLLM."""
        return f"vllm serve {folder}"


class CompressedFiles:
    """What lies in the folder."""

    def __init__(self, folder: Path) -> None:
        self._stored = Folder(folder)
        self._there = {transformers_name(key): key for key in self._stored.where}

    def keys(self) -> set[str]:
        """Names of the float model's tensors."""
        ends = (".weight_packed", ".weight_shape", ".weight_scale", ".input_scale", ".input_zero_point")
        names = {key.rpartition(".")[0] for key in self._there if key.endswith(".weight_scale")}
        return {key for key in self._there if not key.endswith(ends)} | {f"{name}.weight" for name in names}

    def linear(self, name: str, kind: str) -> Held:
        """Its integers, steps, bias and input."""
        there = next(self._there[key] for key in (f"{name}.weight", f"{name}.weight_packed") if key in self._there)
        own = self._stored.linear(there.rpartition(".")[0])
        packed = own.get("weight_packed")
        values = own["weight"] if packed is None else _unpacked(packed, int(own["weight_shape"][1]))
        release([] if packed is None else [packed])
        grid = (float(own["input_scale"]), int(own["input_zero_point"])) if "input_scale" in own else None
        step = own["weight_scale"].reshape(-1).to(torch.float32)
        return Held(values, step, own.get("bias"), grid, per_token=kind == DYNAMIC)

    def tensor(self, key: str) -> Tensor:
        """The tensor as it is stored."""
        return self._stored.tensor(self._there.get(key, key))


def transformers_name(key: str) -> str:
    """What transformers calls a tensor that a file has under this name."""
    before, sparse, after = key.partition(".block_sparse_moe.")
    if not sparse:
        return key
    projections = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    return f"{before}.mlp." + ".".join(projections.get(part, part) for part in after.split("."))


def _name(source: Source, name: str) -> str:
    """What files call a tensor or a linear: Mixtral's have other names than transformers' modules."""
    if source.config.get("model_type") == "mixtral":
        for ours, theirs in MIXTRAL.items():
            name = name.replace(ours, theirs)
    return name


def _targets(source: Source, names: Iterable[str]) -> list[str]:
    """Names of linears as quantization_config has them, experts by layer: vLLM looks for `experts.0.gate_proj`."""
    targets: dict[str, None] = {}
    for name in names:
        expert = EXPERT.match(_name(source, name))
        targets[rf"re:{re.escape(expert[1])}\..*" if expert else _name(source, name)] = None
    return list(targets)


def _stored(linear: Linear, kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a linear, by suffix."""
    model_bias = linear.model_bias()
    # float32: rounded to the model's dtype, it is not quant_bias's
    bias = {} if model_bias is None else {"bias": model_bias}
    if kind == FLOAT:
        weight = cast(f"{linear.name}.weight", linear.weight(), dtype)
        return {"weight": weight, **{suffix: cast(linear.name, value, dtype) for suffix, value in bias.items()}}
    scale = {"weight_scale": linear.step.reshape(-1, 1)}
    if kind == ALONE:
        shape = torch.tensor(linear.values.shape)
        return {"weight_packed": _packed(linear.values), "weight_shape": shape, **scale, **bias}
    stored = {"weight": linear.values, **scale, **bias}
    if kind == STATIC:
        assert linear.grid is not None
        stored["input_scale"] = torch.tensor([linear.grid.scale])
        stored["input_zero_point"] = torch.tensor([linear.grid.offset], dtype=torch.int8)
    return stored


def _packed(values: Tensor) -> Tensor:
    """int32 [n, ceil(k / 4)] of int8 [n, k]: unsigned bytes around 128, the first in the lowest bits."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % PACKED))
    parts = (padded.to(torch.int32) + 128).reshape(len(values), -1, PACKED)
    shifts = torch.arange(0, 32, 8, dtype=torch.int64)
    words = (parts.to(torch.int64) << shifts).sum(dim=2)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _unpacked(packed: Tensor, columns: int) -> Tensor:
    """int8 [n, k] of the bytes as they lie in memory."""
    return (packed.contiguous().view(torch.uint8)[:, :columns].to(torch.int16) - 128).to(torch.int8)


def _quantization(source: Source, plan: Mapping[str, str]) -> dict[str, Any]:
    """quantization_config of config.json: a group a format, named linears where there are several."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, kind in plan.items():
        if kind != FLOAT:
            names[kind].append(name)
    groups = {}
    for number, (kind, linears) in enumerate(names.items()):
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if len(names) == 1 else _targets(source, linears),
            "weights": WEIGHTS,
            "input_activations": INPUTS[kind],
            "output_activations": None,
            "format": _format(kind),
        }
    formats = {_format(kind) for kind in names}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": _float_linears(source, plan),
    }


def _format(kind: str) -> str:
    return "pack-quantized" if kind == ALONE else "int-quantized"


def _float_linears(source: Source, plan: Mapping[str, str]) -> list[str]:
    """Every matrix that is no quantized linear, and a tied output layer, which is stored under no name."""
    matrices = [key.removesuffix(".weight") for key in source.floats if len(source.shapes[key]) == 2]
    tied = ["lm_head"] if source.tied else []
    return _targets(source, [*(name for name, kind in plan.items() if kind == FLOAT), *matrices, *tied])


def _names(source: Source) -> list[str]:
    """At least as many and as long names as will be written."""
    suffixes = ("weight_packed", "weight_shape", "weight_scale", "input_scale", "input_zero_point", "bias")
    keys = [*source.floats, *(f"{name}.{suffix}" for name in source.types for suffix in suffixes)]
    return [_name(source, key) for key in keys]
