"""What every target shares: how a folder is written whole, and nothing but what was checked takes its place.

A target is a dataclass of its knobs; `slimrun-export` and the group `export` construct it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from slimrun.ops import bundle
from slimrun.ops.bundle.writer import settle
from slimrun.ops.files import sync
from slimrun.ops.scratch import ScratchFolder

from .checks import Check, Files, check
from .plan import Abilities, Change, planned
from .source import DTYPES, EXPERT, Source

AUTO = "auto"
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")  # keys of config.json
WEIGHTS = (".safetensors", ".gguf", ".ckpt")  # how names of weight files end


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """The folders above one that is to be, gone again where they were not there and nothing came into them."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for parent in missing:  # the innermost first
                parent.rmdir()
        raise


@dataclass(frozen=True)
class Exported:
    """What `Target.run` left, for a person."""

    target: str
    folder: Path
    changes: list[Change]
    checks: list[Check]
    command: str


@dataclass(frozen=True)
class Target:
    """One kind of files that engines load."""

    name: ClassVar[str]  # as a user types it
    abilities: ClassVar[Abilities]
    dtypes: ClassVar[tuple[str, ...]] = tuple(DTYPES)  # of a model there
    float_inputs: ClassVar[bool] = False  # whatever grid the bundle has for them
    multiplies: ClassVar[bool] = False  # inputs by the rounded reciprocal of their scale, where we divide

    dtype: str = AUTO

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        if self.dtype not in (AUTO, *self.dtypes):
            raise ValueError(
                f"dtype={self.dtype} is nothing that {self.name} runs; allowed: {', '.join((AUTO, *self.dtypes))}"
            )

    def check(self, config: Mapping[str, Any]) -> None:
        """ValueError when no model with this config.json can be exported, whatever its weights are."""
        if any((config.get(key) or 0) > 1 for key in EXPERT_COUNTS):
            self._check_mixture(config)
        said = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
        if self.dtype == AUTO and said in DTYPES and said not in self.dtypes:
            raise ValueError(
                f"dtype=auto keeps the model's {said}, which {self.name} does not run; give dtype="
                f"{' or '.join(self.dtypes)}, or quantize the model in it (model.dtype={self.dtypes[0]})"
            )

    def check_tokenizer(self, content: Mapping[str, Any] | None) -> None:
        """ValueError when a model with this tokenizer.json, None where it has none, cannot be exported."""

    def engine(self) -> Abilities:
        """What the engine can hold, with these knobs."""
        return self.abilities

    def write(self, source: Source, plan: Mapping[str, str], folder: Path) -> list[Change]:
        """Write all files into the empty folder, each linear in the format that `plan` says."""
        raise NotImplementedError

    def files(self, folder: Path) -> Files:
        """What `write` left in the folder."""
        raise NotImplementedError

    def load(self, folder: Path) -> Any:
        """The model of the folder as transformers runs it, None where it does not read such files.

        ImportError when it would with another package.
        """
        return None

    def command(self, folder: Path) -> str:
        """What a person types to serve it."""
        raise NotImplementedError

    def run(self, artifact: Path, folder: Path) -> Exported:
        """Write the bundle's model into `folder`, in the place of what is there, once all checks hold.

        ValueError names what is wrong in the bundle, or what the target cannot hold; then nothing is written.
        """
        with _parents(folder), ScratchFolder(f".{folder.name}", folder.parent) as scratch:
            changes, checks = bundle.undisturbed(artifact, lambda place: self._attempt(place, scratch))
            settle(scratch, folder, [file for file in scratch.iterdir() if file.suffix in WEIGHTS])
        return Exported(self.name, folder, changes, checks, self.command(folder))

    def dtype_of(self, source: Source) -> torch.dtype:
        """The dtype that the model has there."""
        return source.dtype if self.dtype == AUTO else DTYPES[self.dtype]

    def cast(self, source: Source, key: str) -> Tensor:
        """One of the bundle's `floats` as it is written; ValueError when a number leaves the dtype's range.

        What has another dtype than the model (norms in float32, tables of integers) keeps it.
        """
        tensor = source.tensor(key)
        return cast(key, tensor, self.dtype_of(source)) if tensor.dtype == source.dtype else tensor

    def _attempt(self, artifact: Path, scratch: Path) -> tuple[list[Change], list[Check]]:
        for left in scratch.iterdir():  # by an attempt during which the bundle was replaced
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        source = Source(artifact)
        self.check(source.config)
        self.check_tokenizer(source.tokenizer)
        return self.written(source, scratch)

    def written(self, source: Source, scratch: Path) -> tuple[list[Change], list[Check]]:
        """Write all files into the empty folder and read them back; what was changed, and what was found."""
        if any(map(EXPERT.match, source.shapes)):
            self._check_mixture(source.config)
        if source.shifts and not self.engine().shifted_norms:
            raise ValueError(
                f"{source.shifts[0]} is no tensor of the float model: smoothing shifts a norm by it, and {self.name} "
                "has no place for it; quantize without do_smooth, or export to vllm-ascend"
            )
        plan, changes = planned(source, self.engine())
        dtype = self.dtype_of(source)
        if dtype != source.dtype:
            was, now = (str(kind).removeprefix("torch.") for kind in (source.dtype, dtype))
            changes.append(Change(f"{was} -> {now}", "all float tensors", f"dtype={self.dtype}"))
        changes += self.write(source, plan, scratch)
        with ThreadPoolExecutor(1) as disk:  # which has time for the files while they are read back
            synced = disk.map(sync, sorted(scratch.iterdir()))
            checks = check(source, plan, self.files(scratch), dtype, fused=self.engine().fuses)
            list(synced)  # raises what the disk has refused, which a later sync need not say again
        return changes, checks

    def _check_mixture(self, config: Mapping[str, Any]) -> None:
        known, kind = self.abilities.mixtures, config.get("model_type")
        if kind not in known:
            raise ValueError(
                f"config.json: model_type={kind}: {self.name} is not written for its experts, which each engine "
                f"names otherwise; allowed: {', '.join(('models without experts', *known))}; load_bundle runs it"
            )


def cast(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this dtype; ValueError when a finite number becomes infinite."""
    if tensor.dtype == dtype:
        return tensor
    converted = tensor.to(dtype)
    if bool((torch.isinf(converted) & torch.isfinite(tensor)).any()):
        raise ValueError(f"{key} holds numbers beyond {str(dtype).removeprefix('torch.')}; give another dtype")
    return converted
