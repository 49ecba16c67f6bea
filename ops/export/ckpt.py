"""The same bundle with MindSpore's weight file, as a run with framework.weights=ckpt leaves it: weights stay coded.

MindSpore writes the file in one piece, so all of what is stored is in memory meanwhile, still coded.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from slimrun.ops.bundle.description import CKPT
from slimrun.ops.bundle.manifest import NAME as MANIFEST
from slimrun.ops.bundle.manifest import check_contents, check_names, float_shapes, read_manifest, write_manifest
from slimrun.ops.framework.mindspore import require
from slimrun.ops.weights import ckpt

from .base import Target
from .checks import Check
from .plan import Abilities, Change
from .source import Source


@dataclass(frozen=True)
class Ckpt(Target):
    """A bundle for `load_bundle`; every tensor keeps its dtype."""

    name: ClassVar[str] = "ckpt"
    abilities: ClassVar[Abilities] = Abilities({})
    dtypes: ClassVar[tuple[str, ...]] = ()

    def check(self, config: Mapping[str, Any]) -> None:
        """ValueError unless MindSpore, which writes the file, works here."""
        try:
            require("writing it", instead="")
        except ValueError as error:
            raise ValueError(f"ckpt is written by MindSpore; {error}") from error

    def command(self, folder: Path) -> str:
        """The line of Python that loads it."""
        return f'slimrun.load_bundle("{folder}", framework="mindspore")'

    def written(self, source: Source, scratch: Path) -> tuple[list[Change], list[Check]]:
        """Write the bundle, and read all tensors back."""
        if source.weights.suffix == CKPT:
            raise ValueError(f"{source.weights} is a .ckpt file already")
        for file in source.folder.iterdir():
            if file != source.weights and file.name != MANIFEST:
                (shutil.copytree if file.is_dir() else shutil.copyfile)(file, scratch / file.name)
        stored = source.stored()
        weights = scratch / source.weights.with_suffix(CKPT).name
        ckpt.write(weights, stored)
        write_manifest(scratch, weights, stored, float_shapes(read_manifest(source.folder) or {}))
        manifest = read_manifest(scratch) or {}
        read_back = ckpt.read(weights)
        check_names(manifest, weights, read_back)
        check_contents(manifest, weights, read_back)
        change = Change(f"{source.weights.suffix} -> {CKPT}", weights.name, "MindSpore's own kind of file")
        return [change], [Check("tensors equal bit for bit", f"{len(read_back)} of {len(stored)}")]
