"""Experts of a mixture loaded as their files have them, one by one.

transformers 5 stacks them while it loads, in memory that no file backs. Its seam for quantizers lets a model be changed
before its weights come: here each expert becomes linears of its own then, and what is in the files is mapped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from slimrun.ops.model.experts import unstack
from slimrun.ops.weights.folder import read_headers

METHOD = "slimrun_experts_apart"
LINEARS = {  # of an expert, by the stack that transformers makes of them
    "gate_up_proj": ("gate_proj", "up_proj"),
    "up_proj": ("up_proj",),
    "down_proj": ("down_proj",),
}
NUMBERED = re.compile(r"\.experts\.\d+\.")  # in a file: an expert has tensors of its own


@register_quantization_config(METHOD)
class ExpertsApart(QuantizationConfigMixin):  # type: ignore[misc]
    """What `from_pretrained` is given as its quantization_config; nothing of it stays in the model."""

    def __init__(self, quant_method: str = METHOD) -> None:
        self.quant_method = quant_method


@register_quantizer(METHOD)
class ExpertsApartLoader(HfQuantizer):  # type: ignore[misc]
    """Loads a float model whose experts are linears of their own, where its files have them so."""

    def __init__(self, quantization_config: ExpertsApart, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self._apart = False

    def preprocess_model(self, model: Any, checkpoint_files: Sequence[str], **_: Any) -> None:
        """Unstack the model, which has no memory yet."""
        names = read_headers([Path(file) for file in checkpoint_files])
        stacking = [one for one in get_model_conversion_mapping(model) if _of_experts(one)]
        self._apart = any(map(NUMBERED.search, names)) and all(_renamings(one) for one in stacking)
        if self._apart:
            unstack(model)

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Names in the place of stacking."""
        if not self._apart:
            return weight_conversions
        return [new for one in weight_conversions for new in (_renamings(one) if _of_experts(one) else [one])]

    def postprocess_model(self, model: Any, **_: Any) -> None:
        """The model is a float one, and knows no quantizer."""
        del model.hf_quantizer, model.config.quantization_config

    def is_serializable(self) -> bool:
        """There is nothing to save."""
        return False

    @property
    def is_trainable(self) -> bool:
        """As far as the model is."""
        return True


def experts_apart(config: Any) -> dict[str, Any]:
    """Keywords for `from_pretrained` of a model with this config: nothing where transformers stacks no experts."""
    conversions = get_checkpoint_conversion_mapping(config.model_type) or []
    return {"quantization_config": ExpertsApart()} if any(map(_of_experts, conversions)) else {}


def _of_experts(conversion: Any) -> bool:
    """Whether it makes stacks of experts."""
    return isinstance(conversion, WeightConverter) and any(
        isinstance(operation, MergeModulelist) for operation in conversion.operations
    )


def _renamings(conversion: Any) -> list[Any]:
    """How the tensors that it stacks are called as linears of their own; none where it does more than stack them."""
    sources, [target, *more] = conversion._original_source_patterns, conversion._original_target_patterns
    before, _, stack = target.rpartition("experts.")
    plain = all(
        (isinstance(one, MergeModulelist) and one.dim == 0) or (isinstance(one, Concatenate) and one.dim == 1)
        for one in conversion.operations
    )
    if more or not plain or len(LINEARS.get(stack, ())) != len(sources):
        return []
    renamings = []
    for source, linear in zip(sources, LINEARS[stack], strict=True):
        pattern = source.replace("experts.*.", r"experts\.(\d+)\.")
        renaming = WeightRenaming(pattern, rf"{before}experts.\1.{linear}.weight")
        renaming.scope_prefix, renaming.base_model_prefix = conversion.scope_prefix, conversion.base_model_prefix
        renamings.append(renaming)
    return renamings
