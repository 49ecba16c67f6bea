"""The description of a bundle: its weight file, the type of every tensor, and the codec that reads coded ones."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, cast

from slimrun.ops import compress
from slimrun.ops.compress.base import Codec
from slimrun.ops.compress.none import NoCompression

SAFETENSORS, CKPT = ".safetensors", ".ckpt"  # kinds of weight files; the second is MindSpore's
NO_TENSORS = ("model_quant_type", "container")  # entries of a description that are none
QUANT_METHOD = "slimrun"  # in config.json: who reads the weights, so that no engine takes them for what it knows
LONGEST_MESSAGE = 400  # characters; a damaged file may have names of any length


@dataclass(frozen=True)
class Description:
    """What a description says: the model's format, each tensor's type, and (name, version) of the container."""

    file: Path
    quant_type: str
    types: dict[str, str]
    container: tuple[str, int] | None

    def codec(self) -> Codec:
        """What decodes the weights; ValueError when nothing here does."""
        if self.container is None:
            return NoCompression()
        known = containers()
        if self.container not in known:
            name, version = self.container
            listed = ", ".join(f"{name} {version}" for name, version in known if name)
            raise damage(self.file, f"container {name} {version} is not known here; known: {listed}")
        return known[self.container]()


def file_name(kind: str, quant_type: str, suffix: str) -> str:
    """The name of the weight file (kind "weight") or of the description."""
    return f"quant_model_{kind}_{quant_type.lower()}{suffix}"


def read_description(folder: Path) -> Description:
    """The description in a folder; ValueError names the file and what is wrong with it."""
    files = sorted(folder.glob("quant_model_description*.json")) if folder.is_dir() else []
    if len(files) != 1:
        raise ValueError(f"{folder} is no bundle: it holds {len(files)} quant_model_description*.json, expected one")
    content = read_object(files[0])
    quant_type = content.get("model_quant_type")
    if not isinstance(quant_type, str) or not re.fullmatch(r"[A-Za-z0-9_]{1,32}", quant_type):
        raise damage(files[0], f"model_quant_type is {quant_type!r}, which names no format")
    types = {key: value for key, value in content.items() if key not in NO_TENSORS}
    for key, value in types.items():
        if not isinstance(value, str):
            raise damage(files[0], f"the type of {key} is {value!r}, expected a name")
    return Description(files[0], quant_type, types, _container(files[0], content.get("container")))


def weight_file(folder: Path, quant_type: str | None = None) -> Path:
    """The weight file of a folder whose description says `quant_type`, None: the description is read for it."""
    weights = folder / file_name("weight", quant_type or read_description(folder).quant_type, SAFETENSORS)
    if not weights.exists() and weights.with_suffix(CKPT).exists():
        return weights.with_suffix(CKPT)
    return weights


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object that a file holds; ValueError names the file."""
    with named(file):
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object")
    return content


def can_decode(codec: Codec) -> bool:
    """Whether what the codec writes can be read back here; the stream of the Ascend hardware cannot."""
    return (codec.container, codec.version) in containers()


def containers() -> dict[tuple[str, int], type[Codec]]:
    """The codecs of `slimrun.ops.compress` by what they call their container, so that a new one is one file."""
    codecs: dict[tuple[str, int], type[Codec]] = {}
    for module in pkgutil.iter_modules(compress.__path__, "slimrun.ops.compress."):
        for value in vars(importlib.import_module(module.name)).values():
            container, version = getattr(value, "container", None), getattr(value, "version", None)
            # a codec that asks another program for its container (a property) reads nothing of its own
            if isinstance(value, type) and is_dataclass(value) and isinstance(container, str):
                codecs[container, cast(int, version)] = cast(type[Codec], value)
    return {key: codecs[key] for key in sorted(codecs)}


@contextmanager
def named(file: Path) -> Iterator[None]:
    """Whatever a library raises at a damaged file becomes a ValueError of one line that names the file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of the tokenizers' Rust is no Exception
        raise damage(file, error) from error


def damage(file: Path, problem: object) -> ValueError:
    """The error that says in one line what is wrong with a file; of another error its first line."""
    text = str(problem).strip() or type(problem).__name__
    if isinstance(problem, KeyError):
        text = f"{text} is not known"
    line = text.split("\n")[0] if isinstance(problem, BaseException) else text
    if not (isinstance(problem, ValueError) and line.startswith(str(file.parent))):  # it has a name already
        shown = line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]} ..."
        line = f"{file}: {shown}"
    return ValueError(line if line.isprintable() else line.encode("unicode_escape", "replace").decode())


def _container(file: Path, said: Any) -> tuple[str, int] | None:
    if said is None:
        return None
    name, version = (said.get("name"), said.get("version")) if isinstance(said, Mapping) else (None, None)
    if not isinstance(name, str) or not isinstance(version, int) or not name:
        raise damage(file, f"container is {said!r}, expected its name and version")
    return name, version


def owner(key: str) -> str:
    """The module that a tensor of this name belongs to."""
    return key.rpartition(".")[0]
