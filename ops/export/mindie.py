"""MindIE-LLM: config.json names the format, and without that name int8 would be read as floats without a word."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from slimrun.ops.format.linear import FLOAT

from .ascend import DESCRIPTION, Ascend
from .plan import Abilities


@dataclass(frozen=True)
class MindIE(Ascend):
    """A linear may be FLOAT inside W8A8S, and not W8A16; what W8A8_DYNAMIC is read as there is not known."""

    name: ClassVar[str] = "mindie"
    abilities: ClassVar[Abilities] = Abilities(
        {kind: kind for kind in ("W8A8S", "W8A8", "W8A8_DYNAMIC", "W8A16")}, mixes_inputs=False
    )

    def describe(self, folder: Path, quant_type: str, types: Mapping[str, str]) -> None:
        """Write the description under both names that MindIE's releases look for."""
        super().describe(folder, quant_type, types)
        shutil.copyfile(folder / DESCRIPTION, folder / f"quant_model_description_{quant_type.lower()}.json")

    def config(self, quant_type: str) -> dict[str, str]:
        """The format; a model that is all float has none."""
        return {} if quant_type == FLOAT else {"quantize": quant_type.lower()}

    def command(self, folder: Path) -> str:
        """The command of MindIE's own example that serves it."""
        return f"cd $ATB_SPEED_HOME_PATH && python -m examples.run_pa --model_path {folder.absolute()}"
