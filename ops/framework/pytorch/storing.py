"""What a bundle stores of a torch model: its tensors, and what describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.dynamic_module_utils import custom_object_save

from slimrun.ops.format.linear import QuantizedLinear


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Quantized linears and tables in their file format, all else untouched; tied tensors once."""
    quantized = {name: child for name, child in module.named_modules() if isinstance(child, QuantizedLinear)}
    stored: dict[str, Tensor] = {}
    for name, linear in quantized.items():
        stored |= {f"{name}.{suffix}": tensor.cpu() for suffix, tensor in linear.stored().items()}
    inside = {name for name, child in module.named_modules(remove_duplicate=False) if child in quantized.values()}
    seen = set()
    for key, tensor in module.state_dict().items():
        identity = tensor.device, tensor.data_ptr(), tensor.numel()
        if key.rpartition(".")[0] in inside or identity in seen:
            continue
        seen.add(identity)
        stored[key] = tensor
    return {key: tensor.detach().cpu().contiguous() for key, tensor in stored.items()}


def save_description(module: Any, tokenizer: Any, folder: Path) -> None:
    """config.json (rope theta also at the top level, where older readers look) and the tokenizer's files."""
    config = module.config
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
    if theta is not None:
        config.rope_theta = theta
    save_code(module, folder)
    config.save_pretrained(folder)
    if module.can_generate():
        module.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_code(module: Any, folder: Path) -> None:
    """The Python files of a model that brings its own code, named in the config's auto_map as lying in the folder."""
    config = module.config
    for owner in (config, module):
        if type(owner).__module__.startswith("transformers_modules."):
            custom_object_save(owner, folder, config=config)
    named = getattr(config, "auto_map", None) or {}
    for kind, target in list(named.items()):
        if isinstance(target, str):  # "owner/name--file.Class" means a hub
            named[kind] = target.rpartition("--")[2]
