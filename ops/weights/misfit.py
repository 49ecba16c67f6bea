"""Weights that are not the model's, or no numbers, said in one line: which ones, what they look like instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SHOWN = 3  # names of each kind
WRAPPERS = {"module": "as DataParallel saves them", "_orig_mod": "as torch.compile saves them"}
LORA = (".lora_", ".base_layer.", "base_model.model.")
QUANTIZED = (
    *("qweight", "qzeros", "g_idx", "scales", "weight_scale", "weight_scale_inv", "weight_packed", "weight_offset"),
    *("deq_scale", "quant_bias", "input_scale", "input_offset", "absmax", "quant_map", "SCB"),
)
GIVE_FLOAT = "give the float model that they were made from"


@dataclass(frozen=True)
class Misfit:
    """What is wrong with weights for a model; false when nothing is."""

    missing: Sequence[str] = ()  # the model's, in its order
    unexpected: Sequence[str] = ()  # those of the file
    other_shapes: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]] = ()  # name, the file's shape, the model's

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.other_shapes)

    def told(self, source: str, model: str, stored: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
        """One line for a person.

        `source` is where the weights lie, `model` the class that they should fit, `stored` all of them, `config` what
        config.json says.
        """
        faults = [f"lacks {_listed(self.missing)}"] if self.missing else []
        if self.unexpected:
            faults.append(f"has {_listed(self.unexpected)}, not known to the model")
        if self.other_shapes:
            shapes = [f"{name} {list(own)} instead of {list(model)}" for name, own, model in self.other_shapes]
            faults.append(f"has {_listed(shapes)}")
        look = self.look(model, stored, config)
        return f"{source} does not hold the weights of {model}: it {', it '.join(faults)}; {look}"

    def look(self, model: str, stored: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
        """What the weights look like, and what to do about it."""
        extra = list(self.unexpected)
        if any(sign in name for name in extra for sign in LORA):
            return "they look like a LoRA adapter's: merge it (merge_and_unload) and save the model"
        if any(name.rpartition(".")[2] in QUANTIZED for name in extra):
            return f"they look quantized already: {GIVE_FLOAT}"
        prefix = common_prefix(extra, self.missing)
        if prefix:
            told = WRAPPERS.get(prefix.split(".")[0])
            return f"every name begins with {prefix}{f' ({told})' if told else ''}: save the model that is inside"
        if config.get("is_encoder_decoder") or any({"encoder", "encoders"} & set(name.split(".")) for name in extra):
            return "they look like an encoder-decoder's, and only decoders run here"
        named = [str(name) for name in config.get("architectures") or []]
        if named and model not in named:
            return f"they look like those of {named[0]}, which config.json names: give a causal language model"
        heads = {name.rpartition(".")[0] for name in extra if name.count(".") == 1}
        if heads and self.missing and not self.other_shapes:
            return f"they look like those of a model with another head ({_listed(sorted(heads))})"
        if self.missing and not extra and all(name.count(".") == 1 for name in self.missing):
            return "they look like a base model's without its output layer, or config.json lacks tie_word_embeddings"
        return "get it again, or give the config.json that belongs to it"


def check_unquantized(names: Iterable[str], source: object) -> None:
    """ValueError names the first tensor that only quantized weights have."""
    for name in names:
        if name.rpartition(".")[2] in QUANTIZED:
            raise ValueError(f"{source} holds {name}: its weights look quantized already; {GIVE_FLOAT}")


def check_finite(weights: Iterable[tuple[str, Tensor]]) -> None:
    """ArithmeticError names the first tensor with NaN or infinite numbers; tensors on the meta device are not seen."""
    for name, tensor in weights:
        if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
            continue
        if not bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all()):
            raise ArithmeticError(
                f"the float model's {name} holds numbers that are not finite; get its weights again, or choose another "
                "model.dtype"
            )


def common_prefix(extra: Sequence[str], missing: Iterable[str]) -> str:
    """What all extra names begin with and the missing ones do not, such as `module.`; "" when there is nothing."""
    known = set(missing)
    known |= {name.partition(".")[2] for name in known if name.count(".") > 1}  # as a base model has them
    for name in extra:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in known:
                prefix = ".".join(parts[:cut]) + "."
                return prefix if all(other.startswith(prefix) for other in extra) else ""
    return ""


def holes(names: Iterable[str]) -> list[str]:
    """Names that a numbered row lacks where its neighbours have them: `experts.3.up_proj.weight`, of 0 to 7."""
    rows: dict[str, dict[str, set[int]]] = {}  # prefix -> suffix -> numbers
    for name in names:
        parts = name.split(".")
        numbered = [place for place, part in enumerate(parts) if part.isdecimal()]
        if numbered:
            place = numbered[-1]
            row = rows.setdefault(".".join(parts[:place]), {})
            row.setdefault(".".join(parts[place + 1 :]), set()).add(int(parts[place]))
    return [
        f"{prefix}.{number}.{suffix}"
        for prefix, row in rows.items()
        for suffix, numbers in row.items()
        for number in sorted(set.union(*row.values()) - numbers)
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
