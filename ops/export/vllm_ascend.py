"""vllm-ascend on Atlas A2 and A3; SGLang on NPU reads the same files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .ascend import ABSORBED, DYNAMIC, MIXTURES, Ascend
from .plan import Abilities


@dataclass(frozen=True)
class VllmAscend(Ascend):
    """W8A8S is not known there: the same integers are W8A8."""

    name: ClassVar[str] = "vllm-ascend"
    abilities: ClassVar[Abilities] = Abilities(
        {"W8A8S": "W8A8", "W8A8": "W8A8", "W8A8_DYNAMIC": "W8A8_DYNAMIC", "W8A16": "W8A16"},
        shifted_norms=True,
        mixtures=MIXTURES,
        experts=(DYNAMIC,),
        absorbed=ABSORBED,
    )

    def command(self, folder: Path) -> str:
        """The command that serves it in vLLM with vllm-ascend."""
        return f"vllm serve {folder} --quantization ascend"
