"""PyTorch: the only place that imports transformers, accelerate and torch_npu."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from slimrun.ops import calibration
from slimrun.ops.framework import embedded
from slimrun.ops.framework.base import Device, LoadedModel, Model, Outline, Unavailable
from slimrun.ops.framework.misfit import check_finite
from slimrun.ops.framework.weight_files import check_folder, strays
from slimrun.ops.quant.base import Quantizer

from .fingerprint import folder_hash, foreign_code
from .outline import check_device, description_key, outline_of

if TYPE_CHECKING:
    from slimrun.ops.calibration.sequential import SequentialCalibrator
    from slimrun.ops.framework.text import TextModel

    from .calibrator import Calibrator
    from .language_model import TorchModel

__all__ = ["Calibrator", "PyTorch", "TorchModel"]


@dataclass(frozen=True)
class PyTorch:
    """Runs models of transformers on a torch device."""

    weight_file: ClassVar[str] = ".safetensors"
    gives_gradients: ClassVar[bool] = True

    def check(self, model: Model, device: Device, cache: Path) -> Outline:
        """The outline of the model; Unavailable with one line on whatever would stop the run later."""
        if model.loader is not None:
            raise Unavailable(f"model.loader={model.loader} is for framework=mindspore; allowed: null")
        check_device(device)
        folder = self.files(model, cache)
        stored = None
        if model.source == "embedded" and folder is not None:
            try:
                stored = check_folder(folder)
            except Unavailable as error:
                raise Unavailable(f"{error} (delete the folder and it is fetched anew)") from error
        elif model.source == "embedded":
            embedded.check_cache(cache)
        elif folder is not None:
            stored = check_folder(folder)
        elif model.source == "pretrained" and _is_path(model):
            raise Unavailable(f"model.path={model.path}: no such folder; give a folder or a hub id (owner/name)")
        found = outline_of(model, folder, cache, stored)
        return replace(found, notes=(*found.notes, *strays(folder))) if folder is not None else found

    def files(self, model: Model, cache: Path) -> Path | None:
        """The folder here that the model is loaded from; None when there is none (yet)."""
        if model.source == "random":
            return None
        folder = embedded.location(cache) if model.source == "embedded" else Path(str(model.path)).expanduser()
        return folder if folder.is_dir() else None

    def fingerprint(self, model: Model, cache: Path, seed: int, *, read: bool = True) -> str | None:
        """What the float weights are: of a folder its content, of a hub id its commit, of random weights the seed."""
        fetched = read and model.source == "embedded"
        if model.source == "random":
            described = json.dumps([model.architecture, seed, torch.__version__], sort_keys=True)
            content = hashlib.sha256(described.encode()).hexdigest()
        elif folder := embedded.folder(cache) if fetched else self.files(model, cache):
            known = folder_hash(folder, cache, read=read, code=model.trust_remote_code)
            elsewhere = model.trust_remote_code and foreign_code(folder)
            if known is None or (elsewhere and not read):
                return None
            content = " ".join([known, *_commits(model, folder)]) if elsewhere else known
        elif not read:
            return None
        else:
            content = " ".join(_commits(model, str(model.path)))
        return f"{content}:{model.dtype}"

    def reader(self, model: Model, cache: Path) -> TextModel | None:
        """How the model reads text; None when its tokenizer is not here yet, Unavailable when it cannot be used."""
        folder = self.files(model, cache)
        if model.source == "embedded" and folder is None:
            return None
        from . import tokenizer

        return tokenizer.reader(model, folder)

    def reader_key(self, model: Model, cache: Path) -> str | None:
        """Hash of everything that `reader` depends on, None where it is not known without asking for it."""
        folder = self.files(model, cache)
        if folder is None:
            return description_key(model, None, cache) if model.source == "random" else None
        own_files = Model(model.name, "pretrained", str(folder), trust_remote_code=model.trust_remote_code)
        unseen = model.trust_remote_code and foreign_code(folder)
        return None if unseen else description_key(own_files, folder, cache)

    def load(self, model: Model, device: Device, cache: Path, seed: int) -> TorchModel:
        """The float model on the device."""
        from . import loading
        from .language_model import TorchModel, check_output_head
        from .placement import input_device, place
        from .tokenizer import load_tokenizer

        check_device(device)
        if model.source == "random":
            module, tokenizer = loading.random_model(model, seed)
            module = place(module, device)
        else:
            folder = embedded.folder(cache) if model.source == "embedded" else self.files(model, cache)
            path = folder or str(model.path)
            module, tokenizer = loading.load_pretrained(path, model, device), load_tokenizer(path, model)
        check_finite(module.named_parameters())
        fingerprint = str(self.fingerprint(model, cache, seed))
        loaded = TorchModel(module, tokenizer, model.name, fingerprint, input_device(module, device))
        check_output_head(loaded)
        return loaded

    def calibrator(
        self, model: LoadedModel, quantizer: Quantizer, texts: Sequence[str], length: int
    ) -> SequentialCalibrator:
        """A Calibrator of the model on these texts, each cut to `length` tokens."""
        from .language_model import TorchModel
        from .network import TorchNetwork

        assert isinstance(model, TorchModel)
        samples = []
        for text in texts:
            ids = model.tokenizer(text, return_tensors="pt", truncation=True, max_length=length)
            samples.append({"input_ids": ids["input_ids"].to(model.device), "use_cache": False})
        # the output head need not run when nothing of it is to be calibrated
        forward = model.module.base_model if quantizer.ignore_last_linear else model.module
        return calibration.calibrator(TorchNetwork(model.module, forward), quantizer, samples)

    def restore(self, folder: Path, device: Device, trust_remote_code: bool = False) -> TorchModel:
        """The running model of a bundle folder, from nothing but its files."""
        from . import restoring
        from .language_model import TorchModel
        from .placement import input_device, place

        check_device(device)
        module, tokenizer = restoring.restore(folder, trust_remote_code)
        module = place(module, device)
        return TorchModel(module, tokenizer, folder.name, "bundle", input_device(module, device))


def __getattr__(name: str) -> Any:
    """Imported on first use: a plan needs neither, and transformers takes seconds."""
    if name == "Calibrator":
        from .calibrator import Calibrator

        return Calibrator
    if name == "TorchModel":
        from .language_model import TorchModel

        return TorchModel
    raise AttributeError(f"module 'slimrun.ops.framework.pytorch' has no attribute {name!r}")


def _commits(model: Model, path: Path | str) -> list[str]:
    from . import loading

    return loading.commits(model, path)


def _is_path(model: Model) -> bool:
    """Whether model.path means a folder here rather than a hub id (`owner/name` that does not exist here)."""
    path = Path(str(model.path)).expanduser()
    return path.exists() or path.is_absolute() or len(path.parts) != 2 or str(model.path).startswith((".", "~"))
