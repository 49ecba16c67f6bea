"""Settings of a run that are no choice of a group: its calibration texts, the jobs of a sweep, the dial of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from slimrun.evaluation.source.file import read_prompts
from slimrun.evaluation.source.pinned import pinned
from slimrun.ops.framework.base import Reader
from slimrun.runner.report.pareto import AXES

PINNED_CALIBRATION = "wikipedia_calibration"
ON_ERROR = ("continue", "stop")
BITS_KEYS = ("quant.target_bits", "quant.target_file_bits")
MOST_BITS = 7.0  # that they take


@dataclass(frozen=True)
class Calibration:
    """Which texts calibrate: a file, a list, or (both null) the pinned Wikipedia articles."""

    path: str | None = None
    prompts: list[str] | None = None
    samples: int = 16
    length: int = 512

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        for name in ("samples", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; allowed: 1 or more")
        if self.path is not None and not self.path.strip():
            raise ValueError("path= names no file; allowed: a file, or null for the pinned texts")
        if self.prompts is not None and not self.prompts:
            raise ValueError("prompts=[] holds no prompt; allowed: one or more, or null for the pinned texts")
        if self.path is not None and self.prompts is not None:
            raise ValueError(f"path={self.path} and calibration.prompts exclude each other; set one of them to null")
        if self.prompts is not None and not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("prompts holds an empty prompt; remove it")

    def texts(self) -> list[str]:
        """The prompts, at most `samples` of them; ValueError names what is wrong in the file."""
        return (self.prompts or read_prompts(self.path or pinned(PINNED_CALIBRATION)))[: self.samples]

    def fit(self, model: Reader) -> list[str]:
        """ValueError when a prompt has no tokens or more than the model's context; a note on prompts that lack."""
        texts = self.texts()
        for number, prompt in enumerate(texts, start=1):
            tokens = len(model.tokenizer(prompt, truncation=True, max_length=self.length)["input_ids"])
            if not tokens:
                raise ValueError(f"{self.source}: the tokenizer makes no token of prompt {number}; remove it")
            if tokens > model.context:
                raise ValueError(
                    f"length={self.length} is out of range; allowed: 1 to {model.context}, the model's context"
                )
        lacking = self.prompts is None and len(texts) < self.samples
        return [f"samples={self.samples} asked for, the text gives {len(texts)}"] if lacking else []

    @property
    def source(self) -> str:
        """Where the prompts come from, for a person."""
        return f"path={self.path}" if self.path else "prompts" if self.prompts else PINNED_CALIBRATION


@dataclass(frozen=True)
class Sweep:
    """How the jobs of a multirun go on after a stop or a failure, what a search is told, how they are shown."""

    resume: bool = True
    on_error: str = "continue"
    retries: int = 0
    objectives: list[str] = field(default_factory=list)
    axis: str = AXES[0]

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error={self.on_error} is not known; allowed: {', '.join(ON_ERROR)}")
        if self.axis not in AXES:
            raise ValueError(f"axis={self.axis} is not known; allowed: {', '.join(AXES)}")
        if self.retries < 0:
            raise ValueError(f"retries={self.retries} is out of range; allowed: 0 or more")

    def values(self, results: Mapping[str, object]) -> list[float] | float:
        """What a search is told about a job: its objectives; one alone is no list. NaN for what is not there."""
        values = [float(cast(float, results.get(key, math.nan))) for key in self.objectives]
        return values[0] if len(values) == 1 else values


@dataclass(frozen=True)
class HowSmall:
    """The dial that `experiment=how_small` walks, and the task whose verdict it asks for."""

    task: str | None = None
    margin: float | None = None
    min_bits: float = 2.0
    key: str = BITS_KEYS[0]
    range: list[float] | None = None

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        if self.margin is not None and not 0 < self.margin < math.inf:
            raise ValueError(f"margin={self.margin} is out of range; allowed: more than 0, finite")
        if not 0 < self.min_bits < MOST_BITS:
            raise ValueError(f"min_bits={self.min_bits} is out of range; allowed: more than 0, less than {MOST_BITS}")
        if not self.key.strip():
            raise ValueError("key= names no key; allowed: one with a number, e.g. quant.fraction")
        if self.key in BITS_KEYS and self.range is not None:
            raise ValueError(f"range={self.told_range} has no effect on {self.key}; allowed: how_small.min_bits")
        if self.key not in BITS_KEYS and (self.range is None or len(set(self.range)) != 2 or len(self.range) != 2):
            raise ValueError(
                f"range={self.told_range} does not say from where to where {self.key} goes; "
                "allowed: the value of the smallest model, that of the largest, e.g. how_small.range=[0.01,0.1]"
            )
        if not all(map(math.isfinite, self.range or [])):
            raise ValueError(f"range={self.told_range} is out of range; allowed: two finite numbers")

    @property
    def told_range(self) -> str:
        """The range as it is typed."""
        return "null" if self.range is None else f"[{','.join(f'{end:g}' for end in self.range)}]"

    @property
    def ends(self) -> tuple[float, float]:
        """The values of the smallest and of the largest model."""
        return (self.range[0], self.range[1]) if self.range else (self.min_bits, MOST_BITS)
