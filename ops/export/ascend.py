"""What the engines of Ascend NPUs share: msModelSlim's tensors of each linear, and its description of every tensor.

The description says "version": "1.0.0" and has the name `quant_model_description.json`, which vllm-ascend looks for.
Types that end in C are never written: they name weights that the vendor's coder made, and ours is another one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from slimrun.ops.bundle.description import read_object
from slimrun.ops.format.arithmetic import INT8_LEVELS, reciprocal_miss
from slimrun.ops.format.linear import FLOAT

from .base import Target, cast
from .checks import Held
from .description import write_description
from .plan import STATIC, Change
from .shards import Folder, ShardWriter, check_size
from .source import Linear, Source

DESCRIPTION, STEM = "quant_model_description.json", "quant_model_weights"
VERSION = "1.0.0"  # of the description
DYNAMIC = "W8A8_DYNAMIC"
MIXTURES = ("qwen3_moe", "deepseek_v3")  # those tried of vllm-ascend's packed_modules_model_mapping
ABSORBED = ("kv_b_proj",)  # vllm-ascend asserts that it is not quantized
SUFFIXES = ("weight_scale", "weight_offset", "input_scale", "input_offset", "quant_bias", "deq_scale")
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Ascend(Target):
    """Weights with msModelSlim's description; `shard_gb` is the most that one weight file takes, in 10**9 bytes."""

    dtypes: ClassVar[tuple[str, ...]] = ("float16", "bfloat16")
    multiplies: ClassVar[bool] = True
    static_has_step: ClassVar[tuple[str, ...]] = ("W8A8",)  # formats with a grid that store weight_scale too
    float32_token_step: ClassVar[bool] = False  # weight_scale of W8A8_DYNAMIC in float32

    shard_gb: float = 5.0

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        super().__post_init__()
        check_size(self.shard_gb)

    def write(self, source: Source, plan: Mapping[str, str], folder: Path) -> list[Change]:
        """Weights, their types, config and tokenizer."""
        dtype = self.dtype_of(source)
        names = [*source.floats, *(f"{name}.{suffix}" for name in plan for suffix in ("weight", "bias", *SUFFIXES))]
        writer = ShardWriter(folder, STEM, self.shard_gb, names)
        types: dict[str, str] = {}
        widest = 0.0
        for linear in source.linears(plan):
            name, kind = linear.name, plan[linear.name]
            for suffix, tensor in self.stored(linear, kind, dtype).items():
                writer.add(f"{name}.{suffix}", tensor)
                types[f"{name}.{suffix}"] = FLOAT if suffix == "bias" else kind
                if suffix == "input_scale":
                    widest = max(widest, float(reciprocal_miss(tensor)))
        for key in source.floats:
            writer.add(key, self.cast(source, key))
            types[key] = FLOAT
        writer.close()
        if source.tied:
            types["lm_head.weight"] = FLOAT  # stored under no name, and looked up all the same
        quant_type = Counter(plan.values()).most_common(1)[0][0] if plan else FLOAT
        self.describe(folder, quant_type, types)
        changes = write_description(source, dtype, folder, **self.config(quant_type))
        if widest:
            number = str(dtype).removeprefix("torch.")
            why = f"the device multiplies by it in {number}: up to {widest:.2g} of a step at {INT8_LEVELS}"
            changes.append(Change("1 / input_scale is rounded", "static inputs", why))
        return changes

    def describe(self, folder: Path, quant_type: str, types: Mapping[str, str]) -> None:
        """Write the type of the model and of every tensor."""
        content = {"version": VERSION, "model_quant_type": quant_type, **dict(sorted(types.items()))}
        (folder / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def config(self, quant_type: str) -> dict[str, str]:
        """What config.json says more."""
        return {}

    def stored(self, linear: Linear, kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of a linear in the format `kind`, by suffix."""
        name = linear.name
        bias = linear.bias if kind in STATIC else linear.model_bias()
        own = {"bias": cast(f"{name}.bias", bias, dtype)} if linear.model_has_bias and bias is not None else {}
        if kind == FLOAT:
            return {"weight": cast(f"{name}.weight", linear.weight(), dtype), **own}
        stored = {"weight": linear.values, **own}
        if kind in STATIC:
            stored |= _folded(linear, dtype)
        if kind not in STATIC or kind in self.static_has_step:
            step = linear.step.reshape(-1, 1)
            exact = kind == DYNAMIC and self.float32_token_step
            stored["weight_scale"] = step if exact else cast(f"{name}.weight_scale", step, dtype)
            stored["weight_offset"] = torch.zeros_like(stored["weight_scale"])
        return stored

    def files(self, folder: Path) -> AscendFiles:
        """The folder's files: tensors read by safetensors, types by the description."""
        return AscendFiles(folder)


class AscendFiles:
    """What lies in the folder."""

    def __init__(self, folder: Path) -> None:
        self._stored = Folder(folder)
        self._types = read_object(folder / DESCRIPTION)

    def keys(self) -> set[str]:
        """Names of the float model's tensors."""
        return {key for key in self._stored.where if key.rpartition(".")[2] not in SUFFIXES}

    def linear(self, name: str, kind: str) -> Held:
        """Its integers, steps, bias and input; ValueError when its tensors are of another type."""
        own = self._stored.linear(name)
        said = {self._types.get(f"{name}.{suffix}") for suffix in own if suffix != "bias"}
        if said != {kind}:
            raise ValueError(f"{name} is described as {', '.join(map(str, said))}, expected {kind}")
        step = own["weight_scale"].reshape(-1).to(torch.float32) if "weight_scale" in own else None
        if "deq_scale" not in own:
            return Held(own["weight"], step, own.get("bias"), per_token=kind == DYNAMIC)
        deq_scale = own["deq_scale"]
        if deq_scale.dtype == torch.int64:
            low, high = deq_scale.view(torch.int32).reshape(-1, 2).unbind(1)  # little-endian words
            if bool(high.any()):
                raise ValueError(f"{name}.deq_scale has bits beyond the float32 in its low word")
            deq_scale = low.contiguous().view(torch.float32)
        grid = (float(own["input_scale"]), int(own["input_offset"]))
        return Held(own["weight"], None, None, grid, deq_scale=deq_scale, quant_bias=own["quant_bias"])

    def tensor(self, key: str) -> Tensor:
        """The tensor as it is stored."""
        return self._stored.tensor(key)


def _folded(linear: Linear, dtype: torch.dtype) -> dict[str, Tensor]:
    """Input grid in the model's dtype, and deq_scale and quant_bias for it: the bundle's own where the grid stays.

    The operator takes deq_scale as the float32's bits in the low word of an int64, but as a float32 with bfloat16.
    """
    assert linear.grid is not None
    assert linear.deq_scale is not None
    assert linear.quant_bias is not None
    assert linear.sums is not None
    scale = torch.tensor([linear.grid.scale]).to(dtype)
    step_of_input = float(scale)
    if not 0 < step_of_input < float("inf"):
        raise ValueError(f"{linear.name}.input_scale={linear.grid.scale:g} is no number of {dtype}; give another dtype")
    deq_scale, quant_bias = linear.deq_scale, linear.quant_bias
    if step_of_input != linear.grid.scale:
        deq_scale = linear.step * step_of_input
        exact = -linear.grid.offset * linear.sums.double()
        if linear.bias is not None:
            exact += (linear.bias.double() / deq_scale.double()).round()
        if float(exact.abs().max()) > INT32_MAX:
            raise ValueError(
                f"{linear.name}: quant_bias leaves int32 with the input_scale of {dtype}; give another dtype"
            )
        quant_bias = exact.to(torch.int32)
    return {
        "input_scale": scale,
        "input_offset": torch.tensor([linear.grid.offset], dtype=torch.int8),
        "quant_bias": quant_bias,
        "deq_scale": deq_scale if dtype == torch.bfloat16 else deq_scale.view(torch.int32).to(torch.int64),
    }
