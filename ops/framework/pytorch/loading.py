"""Loading torch models: folders, hub ids, random ones, and bundles read back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ops.bundle import Bundle
from ops.framework.base import Device, Model, Unavailable
from ops.framework.int8_linear import restored_linear

from .network import add_bias, linear_names
from .outline import first_line
from .placement import find_device_map, private_folder

BYTE_SPECIALS = ("<pad>", "<s>", "</s>")


def read_config(model: Model) -> Any:
    """The transformers config of a model, without its weights."""
    if model.source != "pretrained":
        return AutoConfig.for_model(**model.architecture)
    try:
        return AutoConfig.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:  # the hub client, the json reader and custom code each raise their own
        raise Unavailable(f"model.path={model.path}: {first_line(error)}{_config_hint(model, error)}") from error


def skeleton(config: Any, *, trust_remote_code: bool = False) -> Any:
    """The model's modules with parameters on the meta device (no memory) and real buffers."""
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def load_pretrained(path: Path | str, model: Model, device: Device) -> Any:
    """The float model of a folder or hub id, on the device or spread as its device_map says."""
    dtype = model.dtype if model.dtype == "auto" else getattr(torch, model.dtype)
    source = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    if device.device_map is None:
        with _quiet_transformers():
            return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **source).to(device.type)
    config = AutoConfig.from_pretrained(path, **source)
    if model.dtype != "auto":
        config.dtype = dtype  # what the skeleton is measured in
    empty = skeleton(config, trust_remote_code=model.trust_remote_code)
    empty.tie_weights()
    device_map = find_device_map(empty, device)
    with _quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, device_map=device_map, offload_folder=private_folder(device), **source
        )


def load_tokenizer(path: Path | str, model: Model) -> Any:
    """The tokenizer of a folder or hub id."""
    return AutoTokenizer.from_pretrained(path, revision=model.revision, trust_remote_code=model.trust_remote_code)


def random_model(model: Model, seed: int) -> tuple[Any, Any]:
    """(model with random weights, byte-level tokenizer) of the given architecture, equal for equal seeds."""
    dtype = torch.float32 if model.dtype == "auto" else getattr(torch, model.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(read_config(model), dtype=dtype), byte_tokenizer()


def byte_tokenizer() -> Any:
    """A tokenizer of the 256 bytes and three special tokens: any text, no vocabulary file."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*BYTE_SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = BYTE_SPECIALS
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)


def rebuild(folder: Path, stored: Bundle, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of a bundle folder from its decoded tensors; ValueError when they do not fit the config."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(f"{folder} brings its own code: give trust_remote_code=True if you trust it") from error
    module = skeleton(config, trust_remote_code=trust_remote_code)
    shapes = linear_names(module)
    rest = dict(stored.tensors)
    for name in stored.quantized:
        prefix = f"{name}."
        own = {key.removeprefix(prefix): rest.pop(key) for key in stored.tensors if key.startswith(prefix)}
        try:
            linear = restored_linear(stored.types[name], own, shapes.get(name))
        except ValueError as error:
            raise ValueError(f"{folder}: {name} {error}") from error
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, linear)
    for key in rest.keys() - module.state_dict().keys():
        owner, _, suffix = key.rpartition(".")
        if owner.endswith(".module") and f"{owner.removesuffix('.module')}.{suffix}" in stored.tensors:
            del rest[key]  # msModelSlim's files hold a smoothed norm twice
        elif suffix == "bias" and f"{owner}.weight" in rest:  # smoothing gave it one
            add_bias(module.get_submodule(owner), rest.pop(key))
    unexpected = module.load_state_dict(rest, strict=False, assign=True).unexpected_keys
    tied = module.all_tied_weights_keys  # a quantized output layer is no longer the embeddings
    module.all_tied_weights_keys = {key: source for key, source in tied.items() if key not in stored.tensors}
    module.tie_weights(recompute_mapping=False)
    missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if missing or unexpected:
        raise ValueError(f"{folder} does not fit its config.json: missing {missing[:3]}, unexpected {unexpected[:3]}")
    if (folder / "generation_config.json").is_file():
        module.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return module, tokenizer


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """transformers' own loading bars would fight with the run's progress display."""
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.enable_progress_bar()


def _config_hint(model: Model, error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "; it brings its own code: add model.trust_remote_code=true if you trust it"
    return "; give an existing folder, or a hub id while the hub can be reached: model=hf model.path=DIR_OR_HUB_ID"
