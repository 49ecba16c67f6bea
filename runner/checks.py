"""What can be seen to be wrong before weights load, and what a reader of the scores must know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

from slimrun.evaluation.base import Task
from slimrun.evaluation.gate import REQUIRED, SUPPORTING
from slimrun.evaluation.statistics import overlap
from slimrun.ops import bundle
from slimrun.ops.errors import Unavailable
from slimrun.ops.format.linear import FLOAT
from slimrun.ops.framework.base import LoadedModel
from slimrun.ops.model.base import Outline
from slimrun.runner import export
from slimrun.runner.choices import Choices
from slimrun.runner.identity import settings_of
from slimrun.runner.settings import Calibration


def check(choices: Choices) -> Outline:
    """The model's outline; ValueError on whatever can be seen to be wrong before weights load."""
    with _named("calibration", choices.calibration):
        choices.calibration.texts()
    readable = bundle.can_decode(choices.compress)  # a codec that runs another program asks it here
    for name, task in choices.task.items():
        with _named(f"task.{name}", task):
            task.check()
    if choices.quant.needs_gradients and not choices.framework.gives_gradients:
        raise ValueError(f"quant._target_={type(choices.quant).__name__} needs gradients; allowed: framework=pytorch")
    outline = choices.framework.check(choices.model, choices.device)
    if outline.missing and not choices.plan:
        raise Unavailable(outline.missing)
    try:
        choices.quant.ignored(list(outline.linears))
        covered = [] if choices.quant.quant_type == FLOAT else choices.quant.covered(list(outline.linears))
    except ValueError as error:
        raise ValueError(f"quant.{error}") from error
    if covered and not set(covered) - outline.kept.keys():
        raise ValueError(f"quant.ignore leaves gates and routers alone: {', '.join(covered[:3])}; take quant=none")
    notes = [outline.missing] if outline.missing else []
    if not outline.missing:  # the tokenizer comes with the weights
        export.check(choices.export, choices.model, readable)
        notes = fit(choices)
    return replace(outline, notes=(*first_notes(choices, outline), *outline.notes, *notes, *uncertified(choices)))


def first_notes(choices: Choices, outline: Outline) -> list[str]:
    """What is said before a run begins: where its sizes are about little of the model, and tasks that take long."""
    coverage = choices.coverage_note(outline)
    return [*([coverage] if coverage else []), *generated(choices, outline)]


def generated(choices: Choices, outline: Outline) -> list[str]:
    """What becomes of tasks that generate text with a model that is larger than memory."""
    names = choices.reading_all(outline)
    if choices.skip_generation and len(names) == len(choices.task):
        raise ValueError("skip_generation=true leaves no task; add one that scores, e.g. task=[perplexity]")
    if choices.skip_generation and names:
        return [f"task: {', '.join(names)} left out (skip_generation=true), memory has no room for the model"]
    way_out = "skip_generation=true leaves them out"
    return [f"task: {', '.join(names)} read the model from disk for every token; {way_out}"] if names else []


def uncertified(choices: Choices) -> list[str]:
    """What the gate wants measured and this run does not measure."""
    wanted = choices.gate.named(REQUIRED, SUPPORTING) if choices.gate else []
    lacking = [name for name in wanted if name not in choices.task]
    return [f"gate: nothing will be certified without task {', '.join(lacking)}; choose task=[...]"] if lacking else []


def fit(choices: Choices, loaded: LoadedModel | None = None) -> list[str]:
    """What a reader of the scores must know of how the texts fit the model; ValueError where they do not.

    Needs the tokenizer and the config alone; of a model that is not here yet nothing is said until it is loaded.
    """

    def look() -> list[str]:
        model = loaded or choices.model.reader()
        if model is None:
            return []
        # every framework's model satisfies the protocols of both rooms; they do not know each other
        reads: Any = model
        notes = []
        parts: dict[str, Calibration | Task] = {f"task.{name}": task for name, task in choices.task.items()}
        for name, part in {"calibration": choices.calibration, **parts}.items():
            with _named(name, part):
                notes += [f"{name}.{note}" for note in part.fit(reads)]
        if date := reads.prompt_date:
            notes.append(f"the chat template asks for the date; every prompt says {date}, whatever the day")
        return notes

    key = choices.model.key()
    asked = (choices.calibration.texts(), settings_of(choices.calibration, "path", "prompts"), choices.protocols())
    return choices.cache.notes(look, key, *asked) if key else look()


def warnings(choices: Choices, calibration: list[str], readable: bool) -> list[str]:
    """What a reader of the scores must know."""
    notes = []
    if not readable:
        notes.append(
            f"nothing here decodes the container {choices.compress.container}: the bundle was not read back, "
            "the scores are those of the quantized model in memory"
        )
    for name, task in choices.task.items():
        share = overlap("\n".join(task.texts()), "\n".join(calibration))
        if share > 0:
            notes.append(f"{share:.1%} of the 13-grams of task {name} also stand in the calibration text")
    return [*notes, *choices.model.notes]


@contextmanager
def named_as_typed(key: str, knobs: Any) -> Iterator[None]:
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
    known = {field.name: getattr(knobs, field.name) for field in fields(knobs)}
    names = [rf"{name}(?==)" for name in known]
    # only what is there: a file may be called prompts.txt
    names += [
        rf"{name}\.{inner.name}\b" for name, knob in known.items() if is_dataclass(knob) for inner in fields(knob)
    ]
    return re.sub(rf"(?<![\w./-])({'|'.join(names)})", rf"{key}.\1", text)


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
