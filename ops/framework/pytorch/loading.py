"""Finding, checking and loading torch models: folders, hub ids, random ones, and bundles read back."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ops.bundle import Bundle
from ops.framework.base import Device, Model, Unavailable

from .int8_linear import restored_linear
from .placement import find_device_map, private_folder
from .smoothing import add_bias

BYTE_SPECIALS = ("<pad>", "<s>", "</s>")
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


def check_device(device: Device) -> None:
    """Export the device's environment; Unavailable unless torch can compute on it."""
    os.environ.update({name: value for name, value in device.environment.items() if value is not None})
    if device.module is not None:
        if importlib.util.find_spec(device.module) is None:
            raise Unavailable(f"device={device.name} needs the package {device.module}: {device.install}")
        try:
            importlib.import_module(device.module)
        except Exception as error:  # a broken vendor package raises anything, and its reason is what the user needs
            raise Unavailable(
                f"device={device.name}: {device.module} does not load ({error}): {device.install}"
            ) from error
    if device.type == "cpu":
        return
    backend = getattr(torch, device.type, None)
    if backend is None or not backend.is_available():
        raise Unavailable(f"device={device.name}: torch finds no such device here: {device.install}")
    cards = [int(key) for key in device.max_memory if key.isdecimal()]
    if cards and max(cards) >= backend.device_count():
        raise Unavailable(f"device.max_memory.{max(cards)}: torch sees {backend.device_count()} cards here, from 0 on")


def read_config(model: Model) -> Any:
    """The transformers config of a model, without its weights."""
    if model.source != "pretrained":
        return AutoConfig.for_model(**model.architecture)
    try:
        return AutoConfig.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:  # the hub client, the json reader and custom code each raise their own
        raise Unavailable(f"model.path={model.path}: {_first_line(error)}{_config_hint(model, error)}") from error


def check_folder(path: Path) -> None:
    """Unavailable unless the folder holds config.json and whole weight files."""
    if not (path / "config.json").is_file():
        raise Unavailable(f"{path} has no config.json; give the folder that save_pretrained wrote")
    files = [file for pattern in WEIGHT_PATTERNS for file in sorted(path.glob(pattern))]
    if not files:
        raise Unavailable(f"{path} has no weights ({', '.join(WEIGHT_PATTERNS)})")
    for index in path.glob("*.index.json"):
        for shard in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
            if not (path / shard).is_file():
                raise Unavailable(f"{path} lacks {shard}, which {index.name} lists; get it again")
    for file in path.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise Unavailable(f"{file} is truncated or damaged ({_first_line(error)}); get it again") from error


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
    rest = dict(stored.tensors)
    for name in stored.quantized:
        prefix = f"{name}."
        own = {key.removeprefix(prefix): rest.pop(key) for key in stored.tensors if key.startswith(prefix)}
        try:
            linear = restored_linear(stored.quant_type, own)
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


def folder_hash(path: Path) -> str:
    """sha256 over names and contents of a model folder's weights, config and tokenizer."""
    digest = hashlib.sha256()
    files = sorted(
        file for file in path.iterdir() if file.suffix in {".safetensors", ".bin", ".json", ".jinja", ".model"}
    )
    for file in files:
        stat = file.stat()
        digest.update(file.name.encode() + _file_hash(file, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return digest.hexdigest()


@cache
def _file_hash(file: Path, *_: int) -> bytes:
    """sha256 of a file; every job of a sweep asks, so it is read once for each state of the file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """transformers' own loading bars would fight with the run's progress display."""
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def _config_hint(model: Model, error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "; it brings its own code: add model.trust_remote_code=true if you trust it"
    return "; give an existing folder, or a hub id while the hub can be reached: model=hf model.path=DIR_OR_HUB_ID"
