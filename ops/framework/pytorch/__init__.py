"""PyTorch: the only place that imports transformers, accelerate and torch_npu."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ops import bundle
from ops.framework import embedded
from ops.framework.base import Device, LoadedModel, Model, Unavailable
from ops.quant.base import Quantizer

from . import loading
from .calibrator import Calibrator, linear_names
from .language_model import TorchModel, check_output_head
from .placement import input_device, place

__all__ = ["Calibrator", "PyTorch", "TorchModel"]


@dataclass(frozen=True)
class PyTorch:
    """Runs models of transformers on a torch device."""

    def check(self, model: Model, device: Device, cache: Path) -> dict[str, tuple[int, int]]:
        """Names and shapes of all linears; Unavailable with one line on whatever would stop the run later."""
        loading.check_device(device)
        if model.source == "embedded" and embedded.location(cache).is_dir():
            try:
                loading.check_folder(embedded.location(cache))
            except Unavailable as error:
                raise Unavailable(f"{error} (delete the folder and it is fetched anew)") from error
        elif model.source == "embedded":
            embedded.check_cache(cache)
        elif model.source == "pretrained" and _is_path(model):
            path = Path(str(model.path)).expanduser()
            if not path.is_dir():
                raise Unavailable(f"model.path={model.path}: no such folder; give a folder or a hub id (owner/name)")
            loading.check_folder(path)
        config = loading.read_config(model)
        shapes = linear_names(loading.skeleton(config, trust_remote_code=model.trust_remote_code))
        if not shapes:
            raise Unavailable(f"model={model.name} has no torch.nn.Linear to quantize")
        return shapes

    def fingerprint(self, model: Model, cache: Path, seed: int) -> str:
        """Hash of the weight files (or of what random weights come from) and the dtype asked for."""
        if model.source == "random":
            described = json.dumps([model.architecture, seed, torch.__version__], sort_keys=True)
            return f"{hashlib.sha256(described.encode()).hexdigest()}:{model.dtype}"
        folder = _folder(model, cache)
        if folder.is_dir():
            return f"{loading.folder_hash(folder)}:{model.dtype}"
        commit = getattr(loading.read_config(model), "_commit_hash", None)
        return f"{model.path}@{commit}:{model.dtype}"

    def load(self, model: Model, device: Device, cache: Path, seed: int) -> TorchModel:
        """The float model on the device."""
        loading.check_device(device)
        if model.source == "random":
            module, tokenizer = loading.random_model(model, seed)
            module = place(module, device)
        else:
            folder = _folder(model, cache)
            path = folder if folder.is_dir() else str(model.path)
            module, tokenizer = loading.load_pretrained(path, model, device), loading.load_tokenizer(path, model)
        fingerprint = self.fingerprint(model, cache, seed)
        loaded = TorchModel(module, tokenizer, model.name, fingerprint, input_device(module, device))
        check_output_head(loaded)
        return loaded

    def calibrator(self, model: LoadedModel, quantizer: Quantizer, texts: Sequence[str], length: int) -> Calibrator:
        """A Calibrator of the model on these texts, each cut to `length` tokens."""
        assert isinstance(model, TorchModel)
        samples = []
        for text in texts:
            ids = model.tokenizer(text, return_tensors="pt", truncation=True, max_length=length)
            samples.append({"input_ids": ids["input_ids"].to(model.device), "use_cache": False})
        # the output head need not run when nothing of it is to be calibrated
        forward = model.module.base_model if quantizer.ignore_last_linear else model.module
        return Calibrator(model.module, quantizer, samples, forward)

    def restore(self, folder: Path, device: Device, trust_remote_code: bool = False) -> TorchModel:
        """The running model of a bundle folder, from nothing but its files."""
        loading.check_device(device)
        stored = bundle.read(folder)
        module, tokenizer = loading.rebuild(folder, stored, trust_remote_code)
        del stored
        module = place(module, device)
        return TorchModel(module, tokenizer, folder.name, "bundle", input_device(module, device))


def _folder(model: Model, cache: Path) -> Path:
    """Where the model's files lie; a hub id is a folder that does not exist."""
    return embedded.folder(cache) if model.source == "embedded" else Path(str(model.path)).expanduser()


def _is_path(model: Model) -> bool:
    """Whether model.path means a folder here rather than a hub id (`owner/name` that does not exist here)."""
    path = Path(str(model.path)).expanduser()
    return path.exists() or path.is_absolute() or len(path.parts) != 2 or str(model.path).startswith((".", "~"))
