"""The run on one screen: float weights in; a verified, evaluated bundle and its numbers out."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from slimrun.evaluation.base import LanguageModel, Outputs, Reference, Task
from slimrun.evaluation.statistics import overlap
from slimrun.ops import bundle
from slimrun.ops.calibration.base import Remember
from slimrun.ops.compress.base import Codec
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.errors import Unavailable
from slimrun.ops.export import Target
from slimrun.ops.framework.base import Device, Framework, LoadedModel
from slimrun.ops.model.base import Model, Outline
from slimrun.ops.quant.base import Quantizer
from slimrun.runner import export
from slimrun.runner.cache import Cache
from slimrun.runner.display import Stages
from slimrun.runner.folder import ARTIFACT
from slimrun.runner.identity import code_hash, digest, settings_of
from slimrun.runner.result import Result, covered_share, not_finite, size_metrics
from slimrun.runner.settings import Calibration, Sweep
from slimrun.runner.tracking.base import Tracker

FLOAT_OUTPUTS = "float outputs"  # what the cache calls them


@dataclass(frozen=True)
class Experiment:
    """A run: what `slimrun` composes from yaml and the command line, or what a script constructs."""

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
    seed: int = 0
    plan: bool = False

    def check(self) -> Outline:
        """The model's outline; ValueError on whatever can be seen to be wrong before weights load."""
        with _named("calibration", self.calibration):
            self.calibration.texts()
        readable = bundle.can_decode(self.compress)  # a codec that runs another program asks it here
        for name, task in self.task.items():
            with _named(f"task.{name}", task):
                task.check()
        if self.quant.needs_gradients and not self.framework.gives_gradients:
            raise ValueError(f"quant._target_={type(self.quant).__name__} needs gradients; allowed: framework=pytorch")
        outline = self.framework.check(self.model, self.device, self.cache.path)
        try:
            self.quant.ignored(list(outline.linears))
            covered = [] if self.quant.quant_type == "FLOAT" else self.quant.covered(list(outline.linears))
        except ValueError as error:
            raise ValueError(f"quant.{error}") from error
        if covered and not set(covered) - outline.kept.keys():
            raise ValueError(f"quant.ignore leaves gates and routers alone: {', '.join(covered[:3])}; take quant=none")
        export.check(self.export, self.model, self.cache.path, readable)
        first = self.coverage_note(outline)
        return replace(outline, notes=(*([first] if first else []), *outline.notes, *self.fit()))

    def fit(self, loaded: LoadedModel | None = None) -> list[str]:
        """What a reader of the scores must know of how the texts fit the model; ValueError where they do not.

        Needs the tokenizer and the config alone; of a model that is not here yet nothing is said until it is loaded.
        """

        def look() -> list[str]:
            model = loaded or self.model.reader(self.cache.path)
            if model is None:
                return []
            # every framework's model satisfies the protocols of both rooms; they do not know each other
            reads: Any = model
            notes = []
            parts: dict[str, Calibration | Task] = {f"task.{name}": task for name, task in self.task.items()}
            for name, part in {"calibration": self.calibration, **parts}.items():
                with _named(name, part):
                    notes += [f"{name}.{note}" for note in part.fit(reads)]
            if date := reads.prompt_date:
                notes.append(f"the chat template asks for the date; every prompt says {date}, whatever the day")
            return notes

        key = self.model.key(self.cache.path)
        asked = (self.calibration.texts(), settings_of(self.calibration, "path", "prompts"), self.protocols())
        return self.cache.notes(look, key, *asked) if key else look()

    def covered(self, outline: Outline) -> dict[str, tuple[int, int]]:
        """The linears that the sizes are about: all but the ignored ones, gates and routers."""
        ignored = self.quant.ignored(list(outline.linears)) | outline.kept.keys()
        return {name: shape for name, shape in outline.linears.items() if name not in ignored}

    def coverage_note(self, outline: Outline) -> str:
        """What the run says first when its sizes are about less than half of the weights; else ""."""
        share = covered_share(self.covered(outline), outline)
        if share >= 0.5 or self.quant.quant_type == "FLOAT":
            return ""
        experts = f"; {outline.experts:,} weights of experts are no linears and stay float" if outline.experts else ""
        told = f"the method covers {share:.1%} of the weights of linears and experts, and its sizes are about these"
        return told + experts

    def run(self, output: Path, stages: Stages, outline: Outline | None = None) -> Result:
        """Do it, leaving the bundle in `output`/artifact; the caller writes and tracks the result.

        `outline` is what `check` gave; without it the run is checked first.
        """
        artifact, outline = output / ARTIFACT, outline or self.check()
        with stages("load", self.model.name):
            model = self.framework.load(self.model, self.device, self.cache.path, self.seed)
            known = dict.fromkeys([*outline.notes, *self.fit(model)])
        texts, fingerprint = self.calibration.texts(), model.fingerprint
        float_outputs = {
            name: dict(self._known_outputs(model, name, task)(self._evaluate(stages, name, "float", task, model)))
            for name, task in self.task.items()
        }
        references = {name: Reference(outputs, model.output_head()) for name, outputs in float_outputs.items()}

        with stages("quantize") as tick, _as_typed("quant", self.quant):
            calibrator = self.framework.calibrator(model, self.quant, texts, self.calibration.length)
            calibrator.quantize(self._known_statistics(model, texts), tick)
        with stages("calibrate") as tick, _as_typed("quant", self.quant):
            layers = calibrator.calibrate(tick)
        with stages("compress") as tick:
            tensors = model.tensors()
            weights = {name: tensors[f"{name}.weight"].numpy() for name in model.quantized()}
            coded = Compressor(self.compress, tick).run(weights)
        with stages("write"):
            weight_file = bundle.write(
                artifact,
                tensors,
                coded,
                self.quant.quant_type,
                self.compress,
                model.save_description,
                self.framework.weight_file,
            )
        readable = bundle.can_decode(self.compress)
        if readable:
            with stages("decode"):
                bundle.verify(artifact, tensors)
        exports = export.write(self.export, artifact, output, stages)
        sizes = size_metrics(layers, self.covered(outline), tensors, coded, artifact)
        notes = [*known, *(as_typed("quant", self.quant, note) for note in calibrator.notes)]
        del calibrator, tensors, weights, coded
        if readable:
            del model
            with stages("reload"):
                final = self.framework.restore(artifact, self.device, self.model.runs_code)
        else:
            final = model

        reports, quant_outputs = {}, {}
        for name, task in self.task.items():
            outputs = self._evaluate(stages, name, "quantized", task, final, references.pop(name))()
            reports[name] = task.compare(name, float_outputs.pop(name), outputs)
            quant_outputs[name] = outputs
        result = Result(
            config_hash=self.identity(),
            layers=sizes.layers,
            reports=reports,
            outputs=quant_outputs,
            weight_file=weight_file,
            exports=exports,
            warnings=[*notes, *final.notes, *self._warnings(texts, readable)],
            metrics={
                **sizes.metrics,
                "size/covered_share": covered_share(self.covered(outline), outline),
                "compress/verified": int(readable),
                "model/fingerprint": fingerprint,
                "artifact/logits_sha256": final.logits_checksum(),
                **{key: value for report in reports.values() for key, value in report.metrics.items()},
                **self._data_hashes(texts),
                **{f"time/{stage}_s": seconds for stage, seconds in stages.seconds.items()},
                "memory/peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            },
        )
        if broken := not_finite(result.metrics):
            raise ArithmeticError(f"{', '.join(broken)}: not a finite number; the quantized model overflows")
        return result

    def identity(self) -> str:
        """Hash of everything that can change the result: settings, our code, the contents of model and data.

        Left out: where things lie and where they are written, tracking, numbers of devices and threads. Loads no
        weight, though it reads the weight files once.
        """
        settings = {
            "quant": settings_of(self.quant, "samples"),  # the texts below say how many were taken
            "compress": settings_of(self.compress, "threads"),
            "task": {name: (settings_of(task, "path"), task.protocol()) for name, task in self.task.items()},
            "calibration": (self.calibration.texts(), self.calibration.length),
            "model": self.framework.fingerprint(self.model, self.cache.path, self.seed),
            "framework": settings_of(self.framework),
            "device": self.device.type,
            "seed": self.seed,
            **({"export": {name: settings_of(target) for name, target in self.export.items()}} if self.export else {}),
        }
        return digest(settings, code_hash())

    def _known_outputs(self, model: LoadedModel, name: str, task: Task) -> Remember:
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

    def _known_statistics(self, model: LoadedModel, texts: list[str]) -> Remember:
        """What calibration measures on the float model, shared by all jobs with these texts and this layer selection.

        The rest of calibration runs through the layers quantized before, so it belongs to its job alone.
        """
        what = {"kind": self.quant.statistics, "model": model.name}
        selection = (self.quant.ignore, self.quant.ignore_last_linear)
        return self.cache.arrays(what, model.fingerprint, self.device.type, texts, self.calibration.length, selection)

    def _data_hashes(self, texts: list[str]) -> dict[str, str | int]:
        """sha256 of what calibrated, how many prompts that was, and of what each task reads."""
        return {
            "data/calibration": digest(texts),
            "data/calibration_prompts": len(texts),
            **{f"data/{name}": digest(task.texts()) for name, task in self.task.items()},
        }

    @staticmethod
    def _evaluate(
        stages: Stages, name: str, kind: str, task: Task, model: LoadedModel, reference: Reference | None = None
    ) -> Callable[[], Outputs]:
        def evaluate() -> Outputs:
            with stages("evaluate", f"{name} ({kind})") as tick:
                # every framework's model is a LanguageModel too; the rooms ops and evaluation do not know each other
                return task.evaluate(cast(LanguageModel, model), reference, tick)

        return evaluate

    def _warnings(self, calibration: list[str], readable: bool) -> list[str]:
        """What a reader of the scores must know."""
        found = []
        if not readable:
            found.append(
                f"nothing here decodes the container {self.compress.container}: the bundle was not read back, "
                "the scores are those of the quantized model in memory"
            )
        for name, task in self.task.items():
            share = overlap("\n".join(task.texts()), "\n".join(calibration))
            if share > 0:
                found.append(f"{share:.1%} of the 13-grams of task {name} also stand in the calibration text")
        return [*found, *self.model.notes]


@contextmanager
def _named(key: str, knobs: Any) -> Iterator[None]:
    """A ValueError that begins with a key of `key` names it, and others, in full, as the user types them."""
    try:
        yield
    except Unavailable:
        raise  # of the model, whatever was asked of it
    except ValueError as error:
        text = as_typed(key, knobs, str(error))
        raise ValueError(text if text.startswith(f"{key}.") else f"{key}.{text}") from error


@contextmanager
def _as_typed(key: str, knobs: Any) -> Iterator[None]:
    """A ValueError names knobs as `as_typed` does."""
    try:
        yield
    except ValueError as error:
        text = as_typed(key, knobs, str(error))
        if text == str(error):
            raise
        raise ValueError(text) from error


def as_typed(key: str, knobs: Any, text: str) -> str:
    """A text that names knobs as Python does (ignore=..., fallback.max_share) with their names on the command line."""
    names = "|".join(field.name for field in fields(knobs))
    return re.sub(rf"(?<![\w.-])({names})(?==|\.\w)", rf"{key}.\1", text)
