"""What can be known of a model without loading a weight: its linears, its size, and whether its files are its own.

Outlines are kept in the cache, because importing a model's code takes seconds: `outlines/<key>.json` is keyed by what
describes the model and by the libraries' versions. Deleting any of it is safe.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimrun.ops.errors import Unavailable, first_line, nearest
from slimrun.ops.model.base import Model, Outline
from slimrun.ops.model.fingerprint import description_hash, store_object
from slimrun.ops.weights.folder import check_float

OWN_CODE = "transformers_modules"  # the package that transformers makes of the code of models


def outline_of(
    model: Model, stored: Mapping[str, Tensor] | None = None, told: Callable[[], Outline | None] | None = None
) -> Outline:
    """The outline of a transformers model; `stored` is what its weight files hold, on the meta device.

    `told` gives it where less than the model's code tells it, else None. Unavailable when what is stored is not the
    model's.
    """

    def first() -> Outline:
        return (told() if told is not None else None) or measure(model, stored)

    described = model.key()
    if described is None:
        return first()  # what a hub id means may change
    held = [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in sorted((stored or {}).items())]
    key = hashlib.sha256(json.dumps([described, held]).encode()).hexdigest()
    file = model.cache / "outlines" / f"{key}.json"
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        linears = {name: (int(rows), int(columns)) for name, (rows, columns) in known["linears"].items()}
        notes = tuple(map(str, known["notes"]))
        kept = {str(name): str(why) for name, why in known["kept"].items()}
        sizes = int(known["parameters"]), int(known["float_bytes"])
        experts, tables, dtype = int(known["experts"]), int(known["tables"]), str(known["dtype"])
        return Outline(linears, *sizes, notes, experts, kept, tables, dtype)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        measured = first()
    store_object(file, asdict(measured))
    return measured


def measure(model: Model, stored: Mapping[str, Tensor] | None = None) -> Outline:
    """The outline from the model's code, with parameters that take no memory; Unavailable when it cannot run here.

    What was stored is loaded into it in the same way, so that the loader itself says whether it fits.
    """
    from slimrun.ops.model.experts import unstack
    from slimrun.ops.model.fit import check_weights  # transformers and the model's code take seconds to import
    from slimrun.ops.model.linears import expert_parameters, float_linears, linear_names
    from slimrun.ops.model.output_head import check_head
    from slimrun.ops.model.tables import tables

    config = model.config()
    check_float(config.to_dict(), f"model={model.name}")
    module = empty_model(config, model)
    module.tie_weights()
    if stored is not None:
        check_weights(module, config, stored, model.origin())
    unstack(module)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    dtype = parameter_dtype(model, config)
    experts = sum(parameter.numel() for parameter in expert_parameters(module).values())
    check_head(module, model.name)
    return Outline(
        linear_names(module),
        parameters,
        parameters * dtype.itemsize,
        experts=experts,
        kept=float_linears(module),
        tables=sum(prod(table.shape) for table in tables(module) if not table.kept),
        dtype=str(dtype).removeprefix("torch."),
    )


def parameter_dtype(model: Model, config: Any) -> torch.dtype:
    """The dtype of the parameters, as the run or else the config says."""
    named = None if model.dtype == "auto" else getattr(torch, model.dtype)
    return named or getattr(config, "dtype", None) or torch.float32


def empty_model(config: Any, model: Model) -> Any:
    """`skeleton` of a model as the run describes it; Unavailable when it is no causal language model."""
    from transformers.initialization import no_init_weights

    from slimrun.ops.model.fit import quiet
    from slimrun.ops.model.skeleton import skeleton

    try:
        with quiet(), no_init_weights():  # which takes half a second of a model that never has weights
            return skeleton(config, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # the model's own code raises its own
        if "trust_remote_code" in str(error) or "Unrecognized configuration class" not in str(error):
            raise Unavailable(
                f"model={model.name}: {_key_of(error, config)}{first_line(error)}{code_hint(error)}"
            ) from error
        kind = ", an encoder-decoder" if getattr(config, "is_encoder_decoder", False) else ""
        raise Unavailable(
            f"model={model.name} is {config.model_type}{kind}; give a causal language model, one of transformers' "
            "AutoModelForCausalLM"
        ) from error


def _key_of(error: BaseException, config: Any) -> str:
    """The key of the config whose value transformers looks up in vain, to stand before that value; else ""."""
    for key, value in config.to_dict().items() if isinstance(error, KeyError) and error.args else ():
        inner = value if isinstance(value, dict) else {"": value}
        for name, named in inner.items():
            if isinstance(named, str) and named == error.args[0]:
                return ".".join(filter(None, (key, name))) + "="
    return ""


def code_hint(error: BaseException) -> str:
    """What to do when transformers refuses to run the code that a model brings, or that code fails; else ""."""
    if "trust_remote_code" in str(error):
        return "; it brings its own code: add model.trust_remote_code=true if you trust it"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if OWN_CODE in frame.filename]
    if not own:
        return ""
    return (
        f" ({Path(own[-1].filename).name}, line {own[-1].lineno}): the code that the model brings does not run with "
        f"transformers {version('transformers')}; get a newer revision of it, or a conversion to a model that "
        "transformers has itself, and leave model.trust_remote_code=false"
    )


def config_of(architecture: Mapping[str, Any]) -> Any:
    """The transformers config of an architecture: `model_type` and the keys of its config; Unavailable if not."""
    from transformers import CONFIG_MAPPING

    from slimrun.ops.model.auto import AutoConfig

    kind = str(architecture.get("model_type", "null"))
    if kind not in CONFIG_MAPPING:
        raise Unavailable(f"model.architecture.model_type={kind} is unknown{nearest(kind, list(CONFIG_MAPPING))}")
    try:
        return AutoConfig.for_model(**architecture)
    except Exception as error:  # a config checks its values in many ways, or not at all
        told = first_line(error).rstrip(".")
        raise Unavailable(
            f"model.architecture: {told}; allowed: what transformers takes for model_type={kind}"
        ) from error


def architecture_key(model: Model, architecture: Mapping[str, Any]) -> str:
    """sha256 of everything that is known of a model without files; libraries' versions are part of it."""
    return _digest(model, dict(architecture))


def description_key(model: Model, folder: Path) -> str:
    """sha256 of everything that is known of a folder's model without its weights: config, code and tokenizer."""
    return _digest(model, description_hash(folder, model.cache, code=model.trust_remote_code))


def _digest(model: Model, described: Any) -> str:
    known = [version("transformers"), version("torch"), model.dtype, model.trust_remote_code, described]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
