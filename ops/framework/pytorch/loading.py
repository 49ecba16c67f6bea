"""Loading torch models: folders, hub ids, random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.hub import cached_file, extract_commit_hash

from slimrun.ops.framework.base import Device, Model, Unavailable

from .checkpoint import check_loaded, quiet
from .fingerprint import foreign_code
from .outline import first_line
from .placement import find_device_map, private_folder
from .skeleton import skeleton
from .tokenizer import byte_tokenizer


def read_config(model: Model) -> Any:
    """The transformers config of a model, without its weights."""
    if model.source != "pretrained":
        return AutoConfig.for_model(**model.architecture)
    try:
        return AutoConfig.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:  # the hub client, the json reader and custom code each raise their own
        raise Unavailable(f"model.path={model.path}: {first_line(error)}{_config_hint(error)}") from error


def commits(model: Model, path: Path | str) -> list[str]:
    """`owner/name@commit` of every repository that the model's files come from, beside its folder.

    Those are the hub id itself, and with `trust_remote_code` the repositories whose code the model runs.
    """
    found = []
    if isinstance(path, str):
        found.append(f"{path}@{getattr(read_config(model), '_commit_hash', None)}")
    if model.trust_remote_code:
        files = [_cached(str(path), name, model.revision) for name in ("config.json", "tokenizer_config.json")]
        for folder in sorted({file.parent for file in files if file is not None}):
            for repository, name in foreign_code(folder):
                code = _cached(repository, name, None)
                found.append(f"{repository}@{extract_commit_hash(str(code), None)}")
    return found


def _cached(repository: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder or hub id, fetched first if it must be; None when there is none."""
    file = cached_file(repository, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if file is None else Path(file)


def empty_model(config: Any, model: Model) -> Any:
    """`skeleton` of a model as the run describes it; Unavailable when it is no causal language model."""
    try:
        with quiet():
            return skeleton(config, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # the model's own code raises its own
        if "trust_remote_code" in str(error) or "Unrecognized configuration class" not in str(error):
            raise Unavailable(f"model={model.name}: {first_line(error)}{_code_hint(error)}") from error
        kind = ", an encoder-decoder" if getattr(config, "is_encoder_decoder", False) else ""
        raise Unavailable(
            f"model={model.name} is {config.model_type}{kind}; give a causal language model, one of transformers' "
            "AutoModelForCausalLM"
        ) from error


def load_pretrained(path: Path | str, model: Model, device: Device) -> Any:
    """The float model of a folder or hub id, on the device or spread as its device_map says.

    ValueError unless transformers found every weight of it there, and no other.
    """
    dtype = model.dtype if model.dtype == "auto" else getattr(torch, model.dtype)
    source = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    spread: dict[str, Any] = {}
    if device.device_map is not None:
        config = AutoConfig.from_pretrained(path, **source)
        if model.dtype != "auto":
            config.dtype = dtype  # what the skeleton is measured in
        empty = skeleton(config, trust_remote_code=model.trust_remote_code)
        empty.tie_weights()
        spread = {"device_map": find_device_map(empty, device), "offload_folder": private_folder(device)}
    try:
        with quiet():
            module, found = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True, **spread, **source
            )
    except RuntimeError as error:
        if "conversion" in str(error):
            raise ValueError(f"{path}: experts lack weights, or have them in other shapes; get it again") from error
        raise
    check_loaded(module, found, str(path))
    return module if spread else module.to(device.type)


def random_model(model: Model, seed: int) -> tuple[Any, Any]:
    """(model with random weights, byte-level tokenizer) of the given architecture, equal for equal seeds."""
    dtype = torch.float32 if model.dtype == "auto" else getattr(torch, model.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(read_config(model), dtype=dtype), byte_tokenizer()


def _code_hint(error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "; it brings its own code: add model.trust_remote_code=true if you trust it"
    return ""


def _config_hint(error: BaseException) -> str:
    way_out = "; give an existing folder, or a hub id while the hub can be reached: model=hf model.path=DIR_OR_HUB_ID"
    return _code_hint(error) or way_out
