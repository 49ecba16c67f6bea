"""What a run is made of, and what it shares with others of the same choices."""

from __future__ import annotations

from dataclasses import dataclass, field

from slimrun.evaluation.base import PATHS, Task
from slimrun.evaluation.gate import Policy
from slimrun.ops.calibration.base import Remember
from slimrun.ops.compress.base import Codec
from slimrun.ops.export import Target
from slimrun.ops.format.linear import FLOAT
from slimrun.ops.framework.base import Device, Framework, LoadedModel
from slimrun.ops.model.base import Model, Outline
from slimrun.ops.quant.base import Quantizer
from slimrun.runner.cache import Cache
from slimrun.runner.identity import code_hash, digest, settings_of
from slimrun.runner.result import covered_share
from slimrun.runner.settings import Calibration, HowSmall, Sweep
from slimrun.runner.tracking.base import Tracker

LARGEST_SEED = 2**63 - 1  # that torch takes
FLOAT_OUTPUTS = "float outputs"  # what the cache calls them


@dataclass(frozen=True)
class Choices:
    """One choice of each group, and the settings beside them."""

    model: Model
    framework: Framework
    quant: Quantizer
    compress: Codec
    device: Device
    task: dict[str, Task]
    tracking: Tracker
    calibration: Calibration
    cache: Cache
    export: dict[str, Target] = field(default_factory=dict)
    sweep: Sweep = field(default_factory=Sweep)
    how_small: HowSmall | None = None
    gate: Policy | None = None
    skip_generation: bool = False
    seed: int = 0
    plan: bool = False

    def __post_init__(self) -> None:
        """Validate, and open the model; ValueError names the key, the value and the range."""
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed={self.seed} is out of range; allowed: 0 to {LARGEST_SEED}")
        object.__setattr__(self, "model", self.model.open(self.cache.path, self.seed))

    def covered(self, outline: Outline) -> dict[str, tuple[int, int]]:
        """The linears that the sizes are about: all but the ignored ones, gates and routers."""
        ignored = self.quant.ignored(list(outline.linears)) | outline.kept.keys()
        return {name: shape for name, shape in outline.linears.items() if name not in ignored}

    def coverage_note(self, outline: Outline) -> str:
        """What the run says first when its sizes are about less than half of the weights; else ""."""
        share = covered_share(self.covered(outline), outline)
        if share >= 0.5 or self.quant.quant_type == FLOAT:
            return ""
        experts = f"; {outline.experts:,} weights of experts are no linears and stay float" if outline.experts else ""
        told = f"the method covers {share:.1%} of the weights of linears and experts, and its sizes are about these"
        return told + experts

    def reading_all(self, outline: Outline) -> list[str]:
        """Tasks that would read the whole model from disk for every token: they generate, and memory has no room."""
        if self.device.type != "cpu" or self.device.device_map is not None or outline.float_bytes <= self.device.room:
            return []
        return [name for name, task in self.task.items() if hasattr(task, "max_new_tokens")]

    def identity(self) -> str:
        """Hash of everything that can change the result: settings, our code, the contents of model and data.

        Left out: where things lie and where they are written, tracking, numbers of devices and threads. Loads no
        weight, though it reads the weight files once.
        """
        settings = {
            "quant": settings_of(self.quant, "samples"),  # the texts below say how many were taken
            "compress": settings_of(self.compress, "threads"),
            "task": {name: (settings_of(task, *PATHS), task.protocol()) for name, task in self.task.items()},
            "calibration": (self.calibration.texts(), self.calibration.length),
            "model": self.framework.fingerprint(self.model),
            "framework": settings_of(self.framework),
            "device": self.device.type,
            "seed": self.seed,
            **({"export": {name: settings_of(target) for name, target in self.export.items()}} if self.export else {}),
            **({"gate": settings_of(self.gate)} if self.gate else {}),
            **({"skip_generation": self.device.max_memory.get("cpu")} if self.skip_generation else {}),
        }
        return digest(settings, code_hash())

    def known_outputs(self, model: LoadedModel, name: str, task: Task) -> Remember:
        """The float model's outputs on a task, shared by all jobs with this model and protocol."""
        what = {"kind": FLOAT_OUTPUTS, "model": model.name, "task": name}
        return self.cache.arrays(what, model.fingerprint, self.device.type, task.protocol())

    def baselines_missing(self, fingerprint: str) -> list[str]:
        """Tasks whose float outputs are not in the cache yet, for float weights of this fingerprint."""
        return [
            name
            for name, task in self.task.items()
            if not self.cache.has(FLOAT_OUTPUTS, fingerprint, self.device.type, task.protocol())
        ]

    def protocols(self) -> dict[str, str]:
        """Task -> everything that can change its outputs."""
        return {name: task.protocol() for name, task in self.task.items()}

    def known_statistics(self, model: LoadedModel, texts: list[str]) -> Remember:
        """What calibration measures on the float model, shared by all jobs with these texts and this layer selection.

        The rest of calibration runs through the layers quantized before, so it belongs to its job alone.
        """
        what = {"kind": self.quant.statistics, "model": model.name}
        selection = (self.quant.ignore, self.quant.ignore_last_linear)
        return self.cache.arrays(what, model.fingerprint, self.device.type, texts, self.calibration.length, selection)

    def data_hashes(self, texts: list[str]) -> dict[str, str | int]:
        """sha256 of what calibrated, how many prompts that was, and of what each task reads."""
        return {
            "data/calibration": digest(texts),
            "data/calibration_prompts": len(texts),
            **{f"data/{name}": digest(task.texts()) for name, task in self.task.items()},
        }
