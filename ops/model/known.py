"""The outline of an architecture whose parameters are told by its config alone, so that its code is not imported.

That code takes ten seconds of the processor's time to import, and a plan of a folder without weights needs nothing else
of it. The skeleton stays the truth: a test holds these names and shapes against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import SimpleNamespace
from typing import Any

import torch

from slimrun.ops.model.base import Outline

# which linears have a bias: the name of the key that says so, or the answer
ATTENTION, OUTPUT, MLP = "attention", "output", "mlp"
BIASES: dict[str, dict[str, str | bool]] = {
    "llama": {ATTENTION: "attention_bias", OUTPUT: "attention_bias", MLP: "mlp_bias"},
    "mistral": {ATTENTION: False, OUTPUT: False, MLP: False},
    "qwen2": {ATTENTION: True, OUTPUT: False, MLP: False},
    "qwen3": {ATTENTION: "attention_bias", OUTPUT: "attention_bias", MLP: False},
}

SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
MORE_SIZES = {  # which transformers' own classes have defaults of
    "mistral": ["num_key_value_heads"],
    "qwen2": ["num_key_value_heads"],
    "qwen3": ["num_key_value_heads", "head_dim"],
}


def plain_config(told: Mapping[str, Any]) -> Any | None:
    """What a config.json says, as a config, where that is all that `known_outline` asks of it, else None.

    transformers' own config takes two seconds to import.
    """
    kind, dtype = told.get("model_type"), told.get("dtype", told.get("torch_dtype"))
    if kind not in BIASES or dtype not in (None, "float32", "float16", "bfloat16"):
        return None
    if not all(type(told.get(size)) is int for size in SIZES + MORE_SIZES.get(kind, [])):
        return None
    return SimpleNamespace(**{"tie_word_embeddings": False, **told, "dtype": getattr(torch, dtype) if dtype else None})


def known_outline(config: Any, dtype: Any) -> Outline | None:
    """The outline of a model of transformers with parameters of this torch dtype; None where it is not known here."""
    shapes = parameters_of(config)
    if shapes is None:
        return None
    tied, table = bool(config.tie_word_embeddings), shapes["model.embed_tokens.weight"]
    linears = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes.items()
        if len(shape) == 2 and name != "model.embed_tokens.weight"
    }
    parameters = sum(prod(shape) for shape in shapes.values()) - tied * prod(table)
    return Outline(
        linears,
        parameters,
        parameters * dtype.itemsize,
        tables=prod(table) * (1 if tied else 2),
        dtype=str(dtype).removeprefix("torch."),
    )


def parameters_of(config: Any) -> dict[str, tuple[int, ...]] | None:
    """Every parameter with its shape, in the order of the modules; None where the architecture is not known here.

    The output head is among them where embeddings are tied, too.
    """
    biases = BIASES.get(config.model_type)
    if biases is None:
        return None
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or width // heads
    if heads % groups or min(width, inner, heads, groups, head) < 2:  # its own code is to say what is wrong
        return None
    has = {kind: bool(getattr(config, bias, False)) if isinstance(bias, str) else bias for kind, bias in biases.items()}
    linears = {
        "self_attn.q_proj": (heads * head, width, has[ATTENTION]),
        "self_attn.k_proj": (groups * head, width, has[ATTENTION]),
        "self_attn.v_proj": (groups * head, width, has[ATTENTION]),
        "self_attn.o_proj": (width, heads * head, has[OUTPUT]),
        "mlp.gate_proj": (inner, width, has[MLP]),
        "mlp.up_proj": (inner, width, has[MLP]),
        "mlp.down_proj": (width, inner, has[MLP]),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, width)}
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}."
        for name, (rows, columns, bias) in linears.items():
            shapes[f"{block}{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{block}{name}.bias"] = (rows,)
            if name == "self_attn.o_proj" and config.model_type == "qwen3":
                shapes |= {f"{block}self_attn.{norm}.weight": (head,) for norm in ("q_norm", "k_norm")}
        shapes |= {f"{block}{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return {**shapes, "model.norm.weight": (width,), "lm_head.weight": (config.vocab_size, width)}
