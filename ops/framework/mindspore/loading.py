"""Finding, checking and loading MindSpore networks: LLaMA folders, hub ids, random ones, user's own, and bundles."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import mindspore as ms
import torch
from huggingface_hub import snapshot_download
from mindspore import nn
from safetensors import safe_open
from transformers import GenerationConfig

from slimrun.ops import bundle
from slimrun.ops.bundle.description import read_object
from slimrun.ops.bundle.references import CONFIG
from slimrun.ops.format.linear import restored_linear
from slimrun.ops.framework import weight_files
from slimrun.ops.framework.base import Model, Outline, Unavailable
from slimrun.ops.framework.mindspore_llama import Llama, rope
from slimrun.ops.framework.misfit import Misfit, check_finite
from slimrun.ops.framework.pytorch import _is_path
from slimrun.ops.framework.pytorch import loading as pytorch
from slimrun.ops.framework.pytorch.outline import outline_of
from slimrun.ops.framework.pytorch.restoring import open_config, open_generation_config, open_tokenizer
from slimrun.ops.framework.pytorch.tokenizer import load_tokenizer

from . import checkpoint
from .int8_cell import quantized_cell
from .language_model import LOADER_KEY, LlamaModel, MindSporeModel
from .network import activation_of, add_bias, cell_of, gates, linear_names, put
from .tensors import DTYPES, to_torch

FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


def outline(model: Model, folder: Path | None, cache: Path) -> Outline:
    """The outline of the model; of a LLaMA without loading a weight."""
    if model.loader is not None:
        network = call_loader(model.loader)[0]
        sizes = {parameter.name: prod(parameter.shape) for parameter in network.get_parameters()}
        width = max((parameter.itemsize for parameter in network.get_parameters()), default=4)
        count = sum(sizes.values())
        return Outline(linear_names(network), count, count * width, kept=gates(network))
    stored = None
    if folder is not None:
        stored = check_folder(folder)
    elif model.source == "pretrained" and _is_path(model):
        raise Unavailable(f"model.path={model.path}: no such folder; give a folder or a hub id (owner/name)")
    check_config(pytorch.read_config(model), model)
    found = outline_of(model, folder, cache, stored)
    return replace(found, notes=(*found.notes, *weight_files.strays(folder))) if folder and stored else found


def load(model: Model, folder: Path | None, seed: int, fingerprint: str) -> MindSporeModel:
    """The float model; a random one has the same weights as with framework=pytorch."""
    if model.loader is not None:
        network, tokenizer = call_loader(model.loader)
        return MindSporeModel(network, tokenizer, model.name, fingerprint, model.loader)
    if model.source == "random":
        module, tokenizer = pytorch.random_model(model, seed)
        config, weights, source = module.config, module.state_dict(), "random weights"
        generation = module.generation_config
    else:
        folder = folder or _fetched(model)
        check_folder(folder)
        config = pytorch.read_config(Model(model.name, "pretrained", str(folder)))
        check_config(config, model)
        tokenizer = load_tokenizer(folder, model)
        generation = generation_config(folder)
        weights, source = read_weights(folder), str(folder)
    dtype = dtype_name(model, config)
    config.dtype = getattr(torch, dtype)
    network = Llama(config, DTYPES[dtype])
    if lost := misfit_of(network, weights):
        raise ValueError(lost.told(source, "LlamaForCausalLM", weights, config.to_dict()))
    check_finite(weights.items())
    checkpoint.load(network, weights, source)
    return LlamaModel(network, tokenizer, model.name, fingerprint, generation)


def restore(folder: Path, trust_remote_code: bool) -> MindSporeModel:
    """The running model of a bundle folder; ValueError names what does not fit."""
    stored, described, config, tokenizer, generation = bundle.undisturbed(
        folder, lambda place: _open(place, trust_remote_code)
    )
    model: MindSporeModel
    if config is None:
        network, _ = call_loader(str(described[LOADER_KEY]))
        model = MindSporeModel(network, tokenizer, folder.name, "bundle", str(described[LOADER_KEY]))
    else:
        network = Llama(config, DTYPES[dtype_name(Model(folder.name, "pretrained", str(folder)), config)])
        model = LlamaModel(network, tokenizer, folder.name, "bundle", generation)
    decoded = bundle.decode(stored, linear_names(network))
    fill(network, decoded.tensors, decoded.types, stored.weights)
    return model


def _open(folder: Path, trust_remote_code: bool) -> tuple[bundle.Stored, dict[str, Any], Any, Any, Any]:
    """Weights still coded, config.json, the config (None: it names a loader), tokenizer and generation config."""
    stored = bundle.open_stored(folder)
    described = read_object(folder / CONFIG)
    config = None
    if LOADER_KEY not in described:
        config = open_config(folder, stored)
        with bundle.named(folder / CONFIG):
            check_config(config, Model(folder.name, "pretrained", str(folder)))
    elif not trust_remote_code:
        raise ValueError(f"{folder} names its own code: give trust_remote_code=True if you trust it")
    return stored, described, config, open_tokenizer(folder), open_generation_config(folder)


def fill(
    network: nn.Cell, tensors: Mapping[str, torch.Tensor], quantized: Mapping[str, str], source: Path | str
) -> None:
    """Make the float network the quantized one of these tensors, given the formats of its quantized linears.

    ValueError when they do not fit.
    """
    known = linear_names(network)
    for name, quant_type in quantized.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        try:
            linear = restored_linear(quant_type, own, known.get(name))
        except ValueError as error:
            raise ValueError(f"{source}: {name} {error}") from error
        put(network, name, quantized_cell(name, linear, activation_of(cell_of(network, name))))
    for key in tensors.keys() - {parameter.name for parameter in network.get_parameters()}:
        owner, _, suffix = key.rpartition(".")
        if suffix == "bias" and owner not in quantized and f"{owner}.weight" in tensors:  # smoothing gave it one
            add_bias(network, owner, tensors[key])
    inside = {parameter.name for name in quantized for parameter in cell_of(network, name).get_parameters()}
    checkpoint.load(network, tensors, source, skip=inside)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors that a folder is loaded from, else of its .ckpt files."""
    found: dict[str, torch.Tensor] = {}
    if of_checkpoints(folder):
        for file in sorted(folder.glob(f"*{checkpoint.SUFFIX}")):
            found |= checkpoint.read(file)
        return found
    for file in weight_files.weight_files(folder):
        with safe_open(file, framework="pt") as stored:
            found |= {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - safe_open is no mapping
    return found


def of_checkpoints(folder: Path) -> bool:
    """Whether the folder's weights are .ckpt files: it has some, and no safetensors."""
    return any(folder.glob(f"*{checkpoint.SUFFIX}")) and not any(folder.glob("*.safetensors"))


def check_folder(folder: Path) -> dict[str, torch.Tensor] | None:
    """What the folder's safetensors hold, on the meta device; None of .ckpt files, which say it when they are read.

    Unavailable unless the folder holds config.json and the whole weights of a float model.
    """
    weight_files.check_kind(folder)
    if of_checkpoints(folder):
        return None
    files = weight_files.weight_files(folder)
    if files[0].suffix != ".safetensors":
        raise Unavailable(
            f"{files[0]}: framework=mindspore reads .safetensors and .ckpt; save the model again with "
            "save_pretrained, or take framework=pytorch"
        )
    return weight_files.read_headers(files)


def misfit_of(network: nn.Cell, weights: Mapping[str, torch.Tensor]) -> Misfit:
    """What the network lacks or has in another shape; what it does not know was seen when the folder was checked."""
    own = {parameter.name: tuple(parameter.shape) for parameter in network.get_parameters()}
    return Misfit(
        [name for name in own if name not in weights],
        other_shapes=[
            (name, tuple(weights[name].shape), shape)
            for name, shape in own.items()
            if name in weights and tuple(weights[name].shape) != shape
        ],
    )


def check_config(config: Any, model: Model) -> None:
    """Unavailable unless the config describes a LLaMA that is built here, in a dtype that runs here."""
    if config.model_type != "llama":
        raise Unavailable(
            f"model={model.name} is {config.model_type}; framework=mindspore builds llama: give your own network with "
            "model.loader=PACKAGE.FUNCTION, or take framework=pytorch"
        )
    try:
        rope(config)
    except ValueError as error:
        raise Unavailable(f"model={model.name}: {error}") from error
    if dtype_name(model, config) == "bfloat16" and ms.get_context("device_target") == "CPU":
        raise Unavailable(
            f"model.dtype={model.dtype}: MindSpore has no bfloat16 products on the CPU; allowed: float32, float16"
        )


def dtype_name(model: Model, config: Any) -> str:
    """The dtype to run in: the one asked for, else the config's, else float32."""
    if model.dtype != "auto":
        return model.dtype
    own = getattr(config, "dtype", None)
    return "float32" if own is None else str(own).removeprefix("torch.")


def call_loader(loader: str) -> tuple[nn.Cell, Any]:
    """(network, tokenizer) of the user's function "package.function"; Unavailable says what is wrong with it."""
    module, _, function = loader.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"model.loader={loader} cannot be imported: {error}") from error
    made = found()
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Cell):
        raise Unavailable(f"model.loader={loader} gives {type(made).__name__}; expected (mindspore.nn.Cell, tokenizer)")
    return made


def generation_config(folder: Path) -> Any:
    """The folder's generation_config.json, None when there is none."""
    return GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").is_file() else None


def _fetched(model: Model) -> Path:
    path = Path(str(model.path)).expanduser()
    if path.is_dir():
        return path
    return Path(snapshot_download(str(model.path), revision=model.revision, allow_patterns=FILES))


def content_hash(loader: str) -> str:
    """Hash of all parameters of a user's network, and of the Python files beside the one that makes it."""
    network = call_loader(loader)[0]
    digest = hashlib.sha256()
    source = Path(str(importlib.import_module(loader.rpartition(".")[0]).__file__)).parent
    for file in sorted(source.glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    for parameter in network.get_parameters():
        digest.update(parameter.name.encode())
        digest.update(to_torch(parameter).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
