"""Finding, checking and loading MindSpore networks: LLaMA folders, hub ids, random ones, user's own, and bundles."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from math import prod
from pathlib import Path
from typing import Any

import mindspore as ms
import torch
from huggingface_hub import snapshot_download
from mindspore import Parameter, nn
from transformers import GenerationConfig

from slimrun.ops import bundle
from slimrun.ops.bundle.description import read_object
from slimrun.ops.bundle.references import CONFIG
from slimrun.ops.errors import Unavailable, nearest
from slimrun.ops.format.linear import Int8Table, restored_linear
from slimrun.ops.framework.mindspore.cells import activation_of, add_bias, cell_of, gates, linear_names, put
from slimrun.ops.framework.mindspore.llama import Llama, rope
from slimrun.ops.framework.opening import open_config, open_generation_config, open_tokenizer
from slimrun.ops.memory import Room, in_files
from slimrun.ops.model.base import Model, Outline
from slimrun.ops.model.own import Own
from slimrun.ops.weights.base import read_tensors
from slimrun.ops.weights.folder import weight_files
from slimrun.ops.weights.mindspore import DTYPES, from_torch, to_torch
from slimrun.ops.weights.misfit import Misfit, check_finite

from .int8_cell import quantized_cell
from .language_model import LOADER_KEY, MindSporeModel
from .llama_model import LlamaModel
from .tables import put_table, stored_tables

FORMATS = (".safetensors", ".ckpt", ".bin")  # of weight files
FILES = ["*.safetensors", "*.bin", "*.json", "*.jinja", "*.txt", "*.model"]


def outline_of(network: nn.Cell) -> Outline:
    """The outline of a user's network."""
    sizes = {parameter.name: prod(parameter.shape) for parameter in network.get_parameters()}
    width = max((parameter.itemsize for parameter in network.get_parameters()), default=4)
    count = sum(sizes.values())
    return Outline(linear_names(network), count, count * width, kept=gates(network))


def load(model: Model, fingerprint: str, room: Room) -> MindSporeModel:
    """The float model; a random one has the same weights as with framework=pytorch.

    Its weights stay in the files that they are read from. What is not there, numbers of another dtype for one, lies in
    files of `room` where memory has none for the model.
    """
    if own := model.own():
        return MindSporeModel(cell(own[0]), own[1], model.name, fingerprint, model.origin(), room)
    module = model.drawn()
    if module is None:
        folder = _fetched(model)
        generation = generation_config(folder)
        config, weights, source = model.config(), read_weights(folder), str(folder)
    else:
        config, weights, source = module.config, module.state_dict(), "random weights"
        generation = module.generation_config
    check_config(config, model.name, model.dtype)
    dtype = dtype_name(model.dtype, config)
    config.dtype = getattr(torch, dtype)
    network = Llama(config, DTYPES[dtype])
    if lost := misfit_of(network, weights):
        raise ValueError(lost.told(source, "LlamaForCausalLM", weights, config.to_dict()))
    room.holds(network, sum(parameter.nbytes for parameter in network.get_parameters()))
    check_finite(room.passing(weights.items()))
    fill_float(network, weights, source, room=room)
    return LlamaModel(network, model.tokenizer(), model.name, fingerprint, generation, room)


def restore(folder: Path, room: Room, trust_remote_code: bool) -> MindSporeModel:
    """The running model of a bundle folder, its tensors in `room`; ValueError names what does not fit."""
    stored, described, config, tokenizer, generation = bundle.undisturbed(
        folder, lambda place: _open(place, trust_remote_code)
    )
    model: MindSporeModel
    if config is None:
        network = cell(Own(folder.name, str(described[LOADER_KEY])).own()[0])
        model = MindSporeModel(network, tokenizer, folder.name, "bundle", str(described[LOADER_KEY]), room)
    else:
        network = Llama(config, DTYPES[dtype_name("auto", config)])
        model = LlamaModel(network, tokenizer, folder.name, "bundle", generation, room)
    shapes = {table.name: table.shape for table in stored_tables(network, stored.types, stored.tensors)}
    decoded = bundle.decode(stored, linear_names(network) | shapes, room)
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
            check_config(config, folder.name)
    elif not trust_remote_code:
        raise ValueError(f"{folder} names its own code: give trust_remote_code=True if you trust it")
    return stored, described, config, open_tokenizer(folder), open_generation_config(folder)


def fill(
    network: nn.Cell, tensors: Mapping[str, torch.Tensor], quantized: Mapping[str, str], source: Path | str
) -> None:
    """Make the float network the quantized one of these tensors, given the formats of its quantized linears.

    ValueError when they do not fit.
    """
    stored = {table.name: table for table in stored_tables(network, quantized, tensors)}
    known = linear_names(network) | {name: table.shape for name, table in stored.items()}
    for name, quant_type in quantized.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        try:
            linear = restored_linear(quant_type, own, known.get(name))
        except ValueError as error:
            raise ValueError(f"{source}: {name} {error}") from error
        if isinstance(linear, Int8Table):
            put_table(network, stored[name], linear)
            continue
        put(network, name, quantized_cell(name, linear, activation_of(cell_of(network, name))))
    for key in tensors.keys() - {parameter.name for parameter in network.get_parameters()}:
        owner, _, suffix = key.rpartition(".")
        if suffix == "bias" and owner not in quantized and f"{owner}.weight" in tensors:  # smoothing gave it one
            add_bias(network, owner, tensors[key])
    inside = {parameter.name for name in quantized for parameter in cell_of(network, name).get_parameters()}
    fill_float(network, tensors, source, skip=inside)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the files that a folder is loaded from."""
    return {name: tensor for file in weight_files(folder, FORMATS) for name, tensor in read_tensors(file)}


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


def check_config(config: Any, name: str, dtype: str = "auto") -> None:
    """Unavailable unless the config describes a LLaMA that is built here, in a dtype that runs here."""
    if config.model_type != "llama":
        raise Unavailable(
            f"model={name} is {config.model_type}; framework=mindspore builds llama: give your own network with "
            "model=own model.loader=PACKAGE.FUNCTION, or take framework=pytorch"
        )
    try:
        rope(config)
    except ValueError as error:
        raise Unavailable(f"model={name}: {error}") from error
    if dtype_name(dtype, config) == "bfloat16" and ms.get_context("device_target") == "CPU":
        raise Unavailable(
            f"model.dtype={dtype}: MindSpore has no bfloat16 products on the CPU; allowed: float32, float16"
        )


def dtype_name(asked: str, config: Any) -> str:
    """The dtype to run in: the one asked for, else the config's, else float32."""
    if asked != "auto":
        return asked
    own = getattr(config, "dtype", None)
    return "float32" if own is None else str(own).removeprefix("torch.")


def cell(network: Any) -> nn.Cell:
    """A user's network; Unavailable unless it is one of MindSpore."""
    if not isinstance(network, nn.Cell):
        kind = type(network).__name__
        raise Unavailable(f"model.loader gives a network of the type {kind}; expected (mindspore.nn.Cell, tokenizer)")
    return network


def generation_config(folder: Path) -> Any:
    """The folder's generation_config.json, None when there is none."""
    return GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").is_file() else None


def _fetched(model: Model) -> Path:
    fetched = model.fetch()
    if isinstance(fetched, Path):
        return fetched
    return Path(snapshot_download(fetched, revision=model.revision, allow_patterns=FILES))


def content_hash(network: nn.Cell) -> str:
    """Hash of all parameters of a user's network."""
    digest = hashlib.sha256()
    for parameter in network.get_parameters():
        digest.update(parameter.name.encode())
        digest.update(to_torch(parameter).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fill_float(
    network: nn.Cell,
    tensors: Mapping[str, torch.Tensor],
    source: Path | str,
    skip: Container[str] = (),
    room: Room | None = None,
) -> None:
    """Give every parameter of the network but `skip` its tensor, in the parameter's dtype; others are left over.

    Once something did not fit into `room`, what lies in no file comes into its files.
    ValueError names the parameter that the source lacks or has in another shape.
    """
    mapped = dict(zip(tensors, in_files(tensors.values()), strict=True)) if room is not None and room.full else {}
    for parameter in network.get_parameters():
        if parameter.name in skip:
            continue
        if parameter.name not in tensors:
            hint = nearest(parameter.name, list(tensors))
            raise ValueError(f"{source} lacks {parameter.name}, which the network has{hint}")
        tensor = tensors[parameter.name]
        if tuple(tensor.shape) != tuple(parameter.shape):
            raise ValueError(
                f"{source}: {parameter.name} has the shape {tuple(tensor.shape)}, the network's has {parameter.shape}"
            )
        values = in_dtype(parameter, tensor)
        if room is not None and room.full:
            if values is not tensor or not mapped[parameter.name]:
                values = room.keep(values)
            room.release([tensor])
        parameter.set_data(from_torch(values))


def in_dtype(parameter: Parameter, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the parameter's dtype, cast on the host."""
    kinds: dict[Any, torch.dtype] = {ms.float32: torch.float32, ms.float16: torch.float16, ms.bfloat16: torch.bfloat16}
    return tensor.to(kinds[parameter.dtype]) if parameter.dtype in kinds else tensor
