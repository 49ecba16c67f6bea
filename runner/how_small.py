"""`slimrun experiment=how_small`: the dial, what the jobs along it lost, and the sentence that answers.

`search.py` says where to look next, `sweeper.py` lets Hydra run the jobs.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from omegaconf import Container, DictConfig, OmegaConf

from slimrun.evaluation.comparison import Score
from slimrun.evaluation.statistics import ALPHA, LEAST_ITEMS
from slimrun.ops.scratch import ScratchFolder
from slimrun.runner.config import HOW_SMALL, CompositionError, ConfigError, construct, kind_of
from slimrun.runner.estimate import Estimate
from slimrun.runner.folder import ARTIFACT, RESULTS, SCORES, bundle_of, read_json, read_scores
from slimrun.runner.refusals import did_you_mean, no_choices
from slimrun.runner.report.pareto import BITS, Job
from slimrun.runner.search import Tried, next_place
from slimrun.runner.settings import BITS_KEYS, MOST_BITS, HowSmall

NOWHERE = object()
EXAMPLE = "how_small.key=quant.fraction how_small.range=[0.01,0.1]"
AROUND = ("hydra", HOW_SMALL, "sweep", "tracking", "cache", "plan", "gate")  # what is not of a job
CONFIDENCE = f"{1 - ALPHA:.0%} confidence"


@dataclass(frozen=True)
class Dial:
    """A key of the configuration with the values between which it is turned."""

    asked: HowSmall
    task: str  # whose verdict is asked for
    whole: bool  # its values are whole numbers

    @property
    def step(self) -> float:
        """Between two places, 0 being the smallest model and 1 the largest."""
        low, high = self.asked.ends
        return 1 / abs(high - low) if self.whole else 0.0

    def override(self, place: float) -> str:
        """What sets the key to its value there: one that is short to read, at an end the end itself."""
        low, high = self.asked.ends
        if place in (0, 1):
            return f"{self.asked.key}={high if place else low:.15g}"
        digits = 0 if self.whole else 3 - math.floor(math.log10(abs(high - low)))  # the dial has 1000 places or more
        return f"{self.asked.key}={round(low + place * (high - low), digits):.15g}"

    def place(self, job: Job) -> float:
        """Where a job stands."""
        low, high = self.asked.ends
        return (float(self.setting(job).partition("=")[2]) - low) / (high - low)

    def setting(self, job: Job) -> str:
        """The override that put a job there."""
        return next(item for item in reversed(job.overrides) if item.startswith(f"{self.asked.key}="))

    def score(self, job: Job) -> Score:
        """The row with the verdict, by the margin asked for."""
        row = next(score for score in job.scores if score.task == self.task and score.verdict)
        row = row if self.asked.margin is None else replace(row, margin=self.asked.margin)
        return replace(row, verdict=row.judged(row.margin or 0.0))

    def judged(self, job: Job) -> Job:
        """The job, its row with the verdict as the margin asked for has it, for tables and pictures."""
        if not any(score.task == self.task and score.verdict for score in job.scores):
            return job
        own = self.score(job)
        return replace(job, scores=[own if row.task == own.task and row.verdict else row for row in job.scores])

    def too_small(self, job: Job) -> bool:
        """Whether a job has fewer bits than an answer may; bits that were asked for may come out a little below."""
        return self.asked.key != BITS_KEYS[0] and float(job.results[BITS]) < self.asked.min_bits

    def holds(self, job: Job) -> bool:
        """Whether a job is an answer."""
        return self.score(job).word == "non-inferior" and not self.too_small(job)

    def tried(self, job: Job) -> Tried:
        """The job as the search sees it."""
        score = self.score(job)
        loss = math.inf
        if score.loss and score.margin and not self.too_small(job):
            loss = score.loss[1] / score.margin
        return Tried(self.place(job), loss, self.holds(job))

    def backwards(self, done: Sequence[Job]) -> bool:
        """Whether what is named as the smallest model turns out to be larger than the other end's."""
        bits = [float(job.results[BITS]) for job in sorted(done, key=self.place)]
        return len(bits) > 1 and bits[0] > 1.01 * bits[-1]

    def so_far(self, done: Sequence[Job]) -> str:
        """What the last job has shown, "" before the first."""
        return f"{self.setting(done[-1])} is {self.score(done[-1]).verdict}; " if done else ""

    def next_override(self, jobs: Sequence[Job], tries: int) -> str | None:
        """What the next job of at most `tries` sets; None when the search has ended, or can say nothing."""
        if not all(job.ok for job in jobs) or any(undecided(self.score(job)) for job in jobs) or self.backwards(jobs):
            return None
        place = next_place([self.tried(job) for job in jobs], tries, self.step)
        return None if place is None else self.override(place)


def dial_of(config: DictConfig) -> Dial | None:
    """The dial of a composed configuration, None of any other run; ConfigError on what is wrong with it."""
    node = config.get(HOW_SMALL)
    if node is None:
        return None
    asked: HowSmall = construct(node, HOW_SMALL)
    if not (tasks := list(map(str, config.get("task") or {}))):
        raise CompositionError(no_choices(config, "task"))
    if asked.task is not None and asked.task not in tasks:
        raise CompositionError(f"how_small.task={asked.task} is not run; allowed: {', '.join(tasks)}, of task=[...]")
    if asked.task is None and len(tasks) > 1:
        raise CompositionError(f"how_small.task: whose verdict is asked for; allowed: {', '.join(tasks)}")
    if (group := asked.key.partition(".")[0]) in AROUND:
        raise CompositionError(
            f"how_small.key={asked.key}: {group} changes no model; name a number that does: {EXAMPLE}"
        )
    value = OmegaConf.select(config, asked.key, default=NOWHERE)
    if value is NOWHERE:
        parent, _, name = asked.key.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        keys = [str(key) for key in node if key != "_target_"] if isinstance(node, DictConfig) else []
        near = did_you_mean(name, keys, f"{parent}." if parent else "")
        raise CompositionError(f"how_small.key={asked.key}: no such key{near}; name one with a number: {EXAMPLE}")
    if isinstance(value, Container):
        raise CompositionError(f"how_small.key={asked.key} holds no number; name a key that does: {EXAMPLE}")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise CompositionError(f"how_small.key={asked.key} holds {value}, no number; name a key with a number")
    kind = kind_of(config, asked.key) or type(value)
    whole = int in (kind, *get_args(kind)) and float not in get_args(kind)
    if whole and any(end % 1 for end in asked.ends):
        raise CompositionError(f"how_small.range={asked.told_range}: {asked.key} is a whole number; name whole numbers")
    return Dial(asked, asked.task or tasks[0], whole)


@dataclass(frozen=True)
class End:
    """An end of the dial."""

    key: str
    override: str
    setting: str  # what the user set, of which it is one

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """A ConfigError about the value there names what the user set."""
        try:
            yield
        except ConfigError as error:
            if self.key not in str(error):
                raise
            raise type(error)(f"{self.setting}: {error}") from error


def ends(dial: Dial) -> list[End]:
    """Both ends of the dial, which a method may refuse."""
    asked = dial.asked
    setting = f"how_small.range={asked.told_range}" if asked.range else f"how_small.min_bits={asked.min_bits:g}"
    return [End(asked.key, dial.override(place), setting) for place in (0.0, 1.0)]


def check(dial: Dial, job: Estimate) -> None:
    """ConfigError where it is known before a weight loads that the items cannot decide at this margin."""
    key, task = f"task.{dial.task}", job.experiment.task[dial.task]
    if job.experiment.skip_generation and dial.task in job.experiment.reading_all(job.outline):
        raise ConfigError(f"how_small: {key} is left out (skip_generation=true), memory has no room for the model")
    texts = len(task.texts())
    items = min(texts, getattr(task, "windows", texts))  # windows of one text are one observation
    if items < LEAST_ITEMS:
        told = f"how_small: {key} has independent items: {items}, which decide no margin"
        raise ConfigError(f"{told}; {LEAST_ITEMS} are the least")
    for record in reversed(job.alike if dial.asked.key in BITS_KEYS else []):
        folder = Path(record.folder)
        results, scores = read_json(folder / RESULTS) or {}, read_scores(folder / SCORES) or []
        there = results.get(BITS) == record.bits_per_weight  # else another run has the folder now
        if record.bits_per_weight >= MOST_BITS and there and any(score.task == dial.task for score in scores):
            row = dial.score(Job(0, "", [], record.folder, results, scores))
            least = row.margin_scale * (row.detectable or 0.0)
            if row.word not in ("worse", "non-inferior") and (row.withheld or least > (row.margin or 0.0)):
                raise ConfigError(f"how_small: {refusal(row)}, says {record.folder}")


def undecided(score: Score) -> bool:
    """Whether no size can be decided by these items and this float model; of one size a few may carry all the loss."""
    of_all = score.items < LEAST_ITEMS or score.withheld.startswith("inconclusive")
    return bool(score.withheld) and of_all and score.word != "worse"


def refusal(score: Score) -> str:
    """Why the sample cannot decide, with the number of items that could."""
    why = score.withheld or score.decides or score.verdict
    return f"the items of {score.task} cannot decide at a margin of {score.margin:g} {score.margin_unit}: {why}"


def answer(dial: Dial, jobs: Sequence[Job]) -> tuple[str, Job | None]:
    """The sentence, and the job that it names; None when none holds."""
    done = sorted((job for job in jobs if job.ok), key=lambda job: float(job.results[BITS]))
    if not done:
        return "how_small: no job has ended, so nothing is known", None
    smallest = next((job for job in done if dial.holds(job)), None)
    sentence = why_none(dial, done[-1]) if smallest is None else found(dial, done, smallest)
    if broken := [str(job.number) for job in jobs if not job.ok]:
        sentence += f"; job {', '.join(broken)} did not end well, so others are not looked at"
    if dial.backwards(done):
        sentence += f"; how_small.range={dial.asked.told_range} names the larger model first: turn it round"
    return sentence, smallest


def found(dial: Dial, done: Sequence[Job], smallest: Job) -> str:
    """The sentence on the smallest of these jobs, by size, that holds."""
    line = f"the smallest that is non-inferior{within(dial.score(smallest))} is {told(dial, smallest)}"
    smaller = [job for job in done if job.results[BITS] < smallest.results[BITS]]
    if not smaller:
        return f"{line}; no smaller one was tried"
    below = f", below {bound(dial)}," if dial.too_small(smaller[-1]) else ""
    return f"{line}; the next smaller one{below} is {dial.score(smaller[-1]).word}: {told(dial, smaller[-1])}"


def why_none(dial: Dial, largest: Job) -> str:
    """The sentence where none holds, the largest that was tried neither."""
    score = dial.score(largest)
    if dial.too_small(largest):
        return f"no size tried has {bound(dial)} or more; the largest is {score.word}: {told(dial, largest)}"
    if score.word != "worse" and (undecided(score) or dial.place(largest) > 1 - 1e-6):
        return f"how_small: {refusal(score)}; the largest tried is {told(dial, largest)}"
    return f"no size tried is non-inferior{within(score)}; the largest is {told(dial, largest)}"


def bound(dial: Dial) -> str:
    """The bits that an answer has at least, as they are typed."""
    return f"how_small.min_bits={dial.asked.min_bits:g}"


def within(score: Score) -> str:
    """The margin and the confidence."""
    return f" within {score.margin:g} {score.margin_unit} at {CONFIDENCE}"


def told(dial: Dial, job: Job) -> str:
    """Size and score of a job."""
    score = dial.score(job)
    bits, megabytes = float(job.results[BITS]), float(job.results["size/artifact_bytes"]) / 1e6
    change = f"{score.difference:+.3g}{f' {score.unit}' if score.unit else ''}"
    if score.interval:
        change += f", {score.interval[0]:+.3g} to {score.interval[1]:+.3g}"
    scores = f"{score.label} {score.float_value:.4g} -> {score.quant_value:.4g} ({change})"
    return f"{megabytes:.1f} MB ({dial.setting(job)}, {bits:.3f} bits a weight) with {scores}"


def put_in_place(sweep: Path, job: Job) -> Path | None:
    """The job's bundle as `artifact` in the folder of the sweep, without a second copy; None where it is gone."""
    if not (bundle := bundle_of(sweep / job.folder, job.results)):
        return None
    target = sweep / ARTIFACT
    with ScratchFolder(".saving", sweep) as scratch:
        shutil.copytree(bundle, scratch / ARTIFACT, copy_function=_linked)
        if target.exists():
            shutil.rmtree(target)
        (scratch / ARTIFACT).rename(target)
    return target


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
