"""vllm-ascend on Atlas 300I (310P): float16 alone, no weights-only format, and W8A8S as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .ascend import ABSORBED, DYNAMIC, MIXTURES, Ascend
from .plan import Abilities


@dataclass(frozen=True)
class VllmAscend310P(Ascend):
    """The card has no bfloat16."""

    name: ClassVar[str] = "vllm-ascend-310p"
    abilities: ClassVar[Abilities] = Abilities(
        {kind: kind for kind in ("W8A8S", "W8A8", "W8A8_DYNAMIC")},
        mixtures=MIXTURES,
        experts=(DYNAMIC,),
        absorbed=ABSORBED,
    )
    dtypes: ClassVar[tuple[str, ...]] = ("float16",)
    float32_token_step: ClassVar[bool] = True

    def command(self, folder: Path) -> str:
        """The command that serves it in vLLM with vllm-ascend."""
        return f"vllm serve {folder} --quantization ascend --dtype float16"
