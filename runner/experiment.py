"""The run on one screen: float weights in; a verified, evaluated bundle and its numbers out."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from slimrun.evaluation.base import LanguageModel, Outputs, Reference, Task
from slimrun.evaluation.comparison import corrected
from slimrun.evaluation.gate import decide
from slimrun.ops import bundle
from slimrun.ops.calibration.journal import Journal
from slimrun.ops.compress.compressor import Compressor
from slimrun.ops.framework.base import LoadedModel
from slimrun.ops.model.base import Outline
from slimrun.runner import checks, export
from slimrun.runner.checks import as_typed, named_as_typed
from slimrun.runner.choices import Choices
from slimrun.runner.display import Stages
from slimrun.runner.folder import ARTIFACT, FLOAT, QUANT
from slimrun.runner.result import Result, covered_share, not_finite, size_metrics


@dataclass(frozen=True)
class Experiment(Choices):
    """A run: what `slimrun` composes from yaml and the command line, or what a script constructs."""

    def check(self) -> Outline:
        """The model's outline; ValueError on whatever can be seen to be wrong before weights load."""
        return checks.check(self)

    def run(
        self, output: Path, stages: Stages, outline: Outline | None = None, journal: Journal | None = None
    ) -> Result:
        """Do it, leaving the bundle in `output`/artifact; the caller writes and tracks the result.

        `outline` is what `check` gave; without it the run is checked first. `journal` has what an attempt that was
        stopped has done.
        """
        artifact, outline = output / ARTIFACT, outline or self.check()
        left_out = self.reading_all(outline) if self.skip_generation else []
        tasks = {name: task for name, task in self.task.items() if name not in left_out}
        with stages("load", self.model.name):
            model = self.framework.load(self.model, self.device)
            known = dict.fromkeys([*outline.notes, *checks.fit(self, model)])
        texts, fingerprint = self.calibration.texts(), model.fingerprint
        float_outputs = {
            name: dict(self.known_outputs(model, name, task)(self._evaluate(stages, name, "float", task, model)))
            for name, task in tasks.items()
        }
        references = {name: Reference(outputs, model.output_head()) for name, outputs in float_outputs.items()}

        with stages("quantize") as tick, named_as_typed("quant", self.quant):
            calibrator = self.framework.calibrator(model, self.quant, texts, self.calibration.length)
            calibrator.journal = journal or Journal()
            calibrator.quantize(self.known_statistics(model, texts), tick)
        with stages("calibrate") as tick, named_as_typed("quant", self.quant):
            layers = calibrator.calibrate(tick)
        with stages("compress") as tick:
            tensors = model.tensors()
            weights = {name: tensors[f"{name}.weight"].numpy() for name in model.quantized()}
            coded = Compressor(self.compress, tick, model.room).run(weights)
        with stages("write"):
            weight_file = bundle.write(
                artifact,
                tensors,
                coded,
                self.quant.quant_type,
                self.compress,
                model.save_description,
                self.framework.weight_file,
                {layer.name: layer.format for layer in layers if layer.format},
                model.room,
                model.shapes,
            )
        readable = bundle.can_decode(self.compress)
        if readable:
            with stages("decode"):
                bundle.verify(artifact, tensors, model.room)
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

        compared, kept = {}, {}
        for name, task in tasks.items():
            after = self._evaluate(stages, name, "quantized", task, final, references.pop(name))()
            before = float_outputs.pop(name)
            compared[name] = task.compare(name, before, after)
            # what only the float side has (states of each token) was for the measurement, and is large
            kept[name] = {FLOAT: {key: array for key, array in before.items() if key in after}, QUANT: after}
        reports = corrected(compared)
        rows = [score for report in reports.values() for score in report.scores]
        decision = decide(self.gate, rows) if self.gate else None
        result = Result(
            config_hash=self.identity(),
            layers=sizes.layers,
            reports=reports,
            outputs=kept,
            weight_file=weight_file,
            exports=exports,
            gate=decision,
            warnings=[*notes, *final.notes, *checks.warnings(self, texts, readable)],
            metrics={
                **sizes.metrics,
                "size/covered_share": covered_share(self.covered(outline), outline),
                "size/model_float_bytes": outline.float_bytes,
                "size/bits_per_parameter": 8 * weight_file.stat().st_size / outline.parameters,
                "compress/verified": int(readable),
                "model/fingerprint": fingerprint,
                "artifact/logits_sha256": final.logits_checksum(),
                **{key: value for report in reports.values() for key, value in report.metrics.items()},
                **(decision.metrics() if decision else {}),
                **self.data_hashes(texts),
                **{f"time/{stage}_s": seconds for stage, seconds in stages.seconds.items()},
                "memory/peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            },
        )
        if broken := not_finite(result.metrics):
            raise ArithmeticError(f"{', '.join(broken)}: not a finite number; the quantized model overflows")
        return result

    @staticmethod
    def _evaluate(
        stages: Stages, name: str, kind: str, task: Task, model: LoadedModel, reference: Reference | None = None
    ) -> Callable[[], Outputs]:
        def evaluate() -> Outputs:
            with stages("evaluate", f"{name} ({kind})") as tick:
                # every framework's model is a LanguageModel too; the rooms ops and evaluation do not know each other
                return task.evaluate(cast(LanguageModel, model), reference, tick)

        return evaluate
