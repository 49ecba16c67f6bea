"""`slimrun experiment=how_small`: where the search looks, what it answers, what it refuses."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimrun.evaluation.comparison import Score
from slimrun.runner.config import composed
from slimrun.runner.how_small import Dial, answer, dial_of
from slimrun.runner.origin import origins
from slimrun.runner.report.pareto import Job
from slimrun.runner.search import RESOLUTION, START, Tried, next_place
from slimrun.runner.settings import HowSmall

from .console import FAST, slimrun
from .test_sweep import runs_in

HOW_SMALL = [*FAST, "experiment=how_small", "quant=w8a8s", "how_small.key=quant.fraction"]
WALK = [*HOW_SMALL, "how_small.range=[0.01,0.1]", "task.perplexity.path=runs.txt", "task.perplexity.windows=20",
        "model.architecture.hidden_size=128", "model.architecture.num_hidden_layers=1"]  # fmt: skip

TRIES = 5  # as the preset has it


def searched(fall: float, crossing: float, step: float = 0.0) -> list[Tried]:
    """The tries on a dial along which the loss's logarithm falls evenly, and meets the margin at `crossing`."""
    tried: list[Tried] = []
    while (place := next_place(tried, TRIES, step)) is not None:
        tried.append(Tried(place, math.exp(fall * (crossing - place)), place >= crossing))
    return tried


@given(st.floats(1.0, 15.0), st.floats(0.02, 0.9))
def test_what_holds_and_what_fails_close_in_on_the_margin(fall: float, crossing: float) -> None:
    tried = searched(fall, crossing)
    assert len(tried) <= TRIES
    held = min(one.place for one in tried if one.holds)
    failed = max(one.place for one in tried if not one.holds)
    assert failed < crossing <= held
    assert held - failed <= 10 * RESOLUTION


def test_a_search_ends_where_everything_holds_and_where_nothing_does() -> None:
    assert [one.place for one in searched(5, -2)] == [START, 0.0]
    assert searched(5, 3)[-1].place == 1.0
    assert not any(one.holds for one in searched(5, 3))


@given(st.integers(0, 7))
def test_a_dial_of_whole_numbers_is_tried_at_each_of_them_once(first: int) -> None:
    tried = [round(8 * one.place, 6) for one in searched(4, (first - 0.5) / 8, 1 / 8)]
    assert len(set(tried)) == len(tried)
    assert all(place == round(place) for place in tried)


def test_the_last_of_the_tries_asked_for_takes_the_largest() -> None:
    failed = [Tried(0.3, 3.0, False), Tried(0.4, 2.0, False)]
    assert next_place(failed, 3) == 1.0
    assert next_place(failed, 2) is None


def test_tries_without_an_interval_halve_what_is_left() -> None:
    assert next_place([Tried(0.3, math.inf, False)], TRIES) == pytest.approx(0.65)
    assert next_place([Tried(0.3, math.inf, False), Tried(0.65, math.inf, False)], TRIES) == pytest.approx(0.825)


@pytest.mark.usefixtures("quick_migrations")
def test_it_answers_in_a_sentence_and_puts_the_bundle_in_place(tmp_path: Path) -> None:
    letters = random.Random(0)  # runs of a letter, which a model with tied embeddings predicts far better than chance
    runs = [letters.choice("abcdefghijklmnopqrstuvwxyz") * letters.randint(3, 30) for _ in range(240)]
    documents = ["".join(runs[first : first + 8]) for first in range(0, 240, 8)]
    (tmp_path / "runs.txt").write_text("\n\n".join(documents))
    command = [*WALK, "how_small.margin=50"]
    status, out, err = slimrun(tmp_path, *command)
    assert status == 0, err
    [sentence] = [line for line in out.splitlines() if line.startswith("the smallest that is non-inferior")]
    assert "within 50 % at 95% confidence" in sentence
    assert "quant.fraction=0.01," in sentence
    assert sentence.endswith("; no smaller one was tried")
    [artifact] = tmp_path.glob("multirun/*/*/artifact")
    record = json.loads((artifact.parent / "sweep.json").read_text())
    winner = next(job for job in record["jobs"] if job["overrides"][-1] == "quant.fraction=0.01")
    assert record["tags"]["how_small"] == sentence
    assert len(record["jobs"]) == 2
    shown = json.loads((artifact.parent / "pareto.json").read_text())["jobs"]
    assert {row["margin"] for job in shown for row in job["scores"] if row["verdict"]} == {50}, "the one asked for"
    for file in (artifact.parent / winner["folder"] / "artifact").iterdir():
        assert file.samefile(artifact / file.name)
    parent = record["parent_run_id"]
    assert sorted(runs_in(tmp_path / "mlflow.db").values(), key=str) == sorted(
        [("FINISHED", None), *[("FINISHED", parent)] * 2], key=str
    )
    repro = json.loads((artifact.parent / "0" / "results.json").read_text())["repro"]
    assert "hydra.mode=RUN" in repro

    status, again, err = slimrun(tmp_path, *command)
    assert status == 0
    assert sentence in again
    assert err.count("is done already") == 2

    (tmp_path / "one.txt").write_text("".join(documents))
    status, _, err = slimrun(tmp_path, *command, "task.perplexity.path=one.txt")
    assert status == 2
    assert "has independent items: 1, which decide no margin" in err


@pytest.mark.parametrize(
    ("ends", "whole"),
    [([0.0123456, 0.1], False), ([1000.5, 1000.9], False), ([1e-7, 2e-7], False), ([12345, 12360], True)],
)
def test_a_value_tells_where_it_was_set(ends: list[float], whole: bool) -> None:
    dial = Dial(HowSmall(key="quant.x", range=ends), "perplexity", whole)
    places = [0.0, 1.0] if whole else [0.0, RESOLUTION / 2, START, 1.0]
    jobs = [replace(job(3.5, 0, 1), overrides=[dial.override(place)]) for place in places]
    assert [dial.place(job) for job in jobs] == pytest.approx(places, abs=RESOLUTION / 10)
    assert (dial.place(jobs[0]), dial.place(jobs[-1])) == (0, 1)


def test_a_dial_is_as_fine_as_its_field_however_its_value_is_written() -> None:
    dial = dial_of(composed(["experiment=how_small", "quant=rdoq_data_free", "how_small.key=quant.price",
                             "how_small.range=[0,2]"]))  # fmt: skip
    assert dial is not None
    assert not dial.whole
    config = composed(["experiment=how_small"])
    config.quant.target_bits = 4
    assert dial_of(config) == Dial(HowSmall(), "perplexity", whole=False)
    config.how_small.update({"key": "quant.samples", "range": [8, 32]})
    assert (told := dial_of(config)) is not None
    assert told.step == 1 / 24


def job(bits: float, low: float, high: float) -> Job:
    """A job on the dial of bits whose perplexity rose by something between low and high percent."""
    score = Score(
        "perplexity", "perplexity", 10.0, 10.5, (9.0, 11.0), (9.0, 11.0), (low + high) / 2, (low, high), 0.01,
        detectable=(high - low) * 0.7, unit="%", higher_is_better=False, verdict="judged anew", margin=5.0,
        margin_unit="%", items=32,
    )  # fmt: skip
    results = {"status": "ok", "size/bits_per_weight": bits, "size/artifact_bytes": bits * 1e6}
    return Job(int(10 * bits), "", [f"quant.target_bits={bits}"], str(bits), results, [score])


def test_the_sentence_names_the_next_smaller_one_or_says_why_there_is_none() -> None:
    dial = Dial(HowSmall(margin=2.0), "perplexity", whole=False)
    jobs = [job(3.5, 7, 9), job(5.0, 0.2, 0.4), job(4.5, 1.5, 1.9), job(4.4, 1.6, 2.1)]
    sentence, smallest = answer(dial, jobs)
    assert smallest is jobs[2]
    assert sentence.startswith(
        "the smallest that is non-inferior within 2 % at 95% confidence is 4.5 MB (quant.target_"
    )
    assert "the next smaller one is inconclusive: 4.4 MB (quant.target_bits=4.4, 4.400 bits a weight)" in sentence
    assert dial.next_override(jobs[:1], TRIES) == "quant.target_bits=5.029"
    sentence, smallest = answer(dial, [job(3.5, 7, 9), job(7.0, 3, 4)])
    assert smallest is None
    assert sentence.startswith("no size tried is non-inferior within 2 % at 95% confidence; the largest is 7.0 MB")
    sentence, smallest = answer(dial, [job(7.0, -3, 4)])
    assert smallest is None
    assert "cannot decide at a margin of 2 %: 32 items decide margins from 4.9 % on; 2 takes about 193" in sentence


def test_the_least_bits_are_those_of_an_answer_and_as_good_as_had_where_they_are_asked_for() -> None:
    asked = HowSmall(margin=2.0, min_bits=4.5, key="quant.fraction", range=[0.01, 0.1])
    jobs = [replace(done, overrides=[f"quant.fraction={done.results['size/bits_per_weight'] / 100}"])
            for done in (job(4.4, 0.1, 0.2), job(5.0, 0.2, 0.4))]  # fmt: skip
    sentence, smallest = answer(Dial(asked, "perplexity", whole=False), jobs)
    assert smallest is jobs[1]
    assert "; the next smaller one, below how_small.min_bits=4.5, is non-inferior: 4.4 MB" in sentence
    sentence, smallest = answer(Dial(asked, "perplexity", whole=False), jobs[:1])
    assert smallest is None
    assert sentence.startswith("no size tried has how_small.min_bits=4.5 or more; the largest is non-inferior: 4.4 MB")

    floor = replace(job(4.498, 0.1, 0.2), overrides=["quant.target_bits=4.5"])  # as a target is met
    dial = Dial(HowSmall(margin=2.0, min_bits=4.5), "perplexity", whole=False)
    sentence, smallest = answer(dial, [job(5.25, 0, 0.1), floor])
    assert smallest is floor
    assert dial.next_override([job(5.25, 0, 0.1), floor], TRIES) is None


def test_losses_that_few_items_carry_at_one_size_say_nothing_of_the_others() -> None:
    dial, [skewed, few, floor] = Dial(HowSmall(), "perplexity", whole=False), [job(3.5, 7, 9) for _ in range(3)]
    withheld = {"interval": None, "withheld": "too few to say (of 32 items one or two carry the whole difference)"}
    for one, said in ((skewed, {}), (few, {"items": 11}), (floor, {"withheld": "inconclusive (baseline at chance)"})):
        one.scores[0] = replace(one.scores[0], **{**withheld, **said})
    assert dial.next_override([skewed], TRIES) == "quant.target_bits=5.25"
    assert dial.next_override([few], TRIES) is None
    assert dial.next_override([floor], TRIES) is None
    assert "cannot decide at a margin of 5 %: too few to say" in answer(dial, [few])[0]
    assert "the next smaller one is too few to say: 3.5 MB" in answer(dial, [skewed, job(5.25, 0.1, 0.2)])[0]


def test_a_search_that_did_not_end_says_so() -> None:
    dial = Dial(HowSmall(margin=2.0), "perplexity", whole=False)
    failed = Job(4, "", ["quant.target_bits=4.4"], "4", {"status": "failed", "error": "no space left"}, [])
    sentence, smallest = answer(dial, [job(5.0, 0.2, 0.4), failed])
    assert smallest is not None
    assert sentence.endswith("; no smaller one was tried; job 4 did not end well, so others are not looked at")


def test_a_range_whose_first_end_is_the_larger_model_is_told_and_not_walked() -> None:
    dial = Dial(HowSmall(key="quant.fraction", range=[0.1, 0.0]), "perplexity", whole=False)
    jobs = [replace(done, overrides=[f"quant.fraction={done.results['size/bits_per_weight'] / 100}"])
            for done in (job(3.5, 7, 9), job(6.5, 0.2, 0.4))]  # fmt: skip
    assert dial.next_override(jobs[:1], TRIES) is not None
    assert dial.next_override(jobs, TRIES) is None
    sentence, smallest = answer(dial, jobs)
    assert smallest is jobs[1]
    assert sentence.endswith("; how_small.range=[0.1,0] names the larger model first: turn it round")


def test_a_margin_of_nothing_is_no_measure_of_losses() -> None:
    done = job(3.5, 0.5, 0.9)
    nothing = replace(done, scores=[replace(done.scores[0], margin=0.0)])
    assert Dial(HowSmall(), "perplexity", whole=False).tried(nothing) == Tried(0.3, math.inf, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["how_small.range=[0.01,0.1]", "how_small.margin=0"], "how_small.margin=0.0 is out of range"),
        (["how_small.range=[0.01,0.1]", "how_small.task=translation"], "how_small.task=translation is not run"),
        (["how_small.range=[0.01,0.1]", "task=[perplexity,translation]"], "how_small.task: whose verdict is asked"),
        (["how_small.range=[0.01,0.1]", "quant.fraction=0.05"], "quant.fraction=0.05: how_small turns quant.fraction"),
        (["how_small.range=[0.5,0.9]"], "how_small.range=[0.5,0.9]: quant.fraction=0.5 is out of range"),
        (
            ["how_small.range=[0.01,0.1]", "task.perplexity.windows=4"],
            "has independent items: 4, which decide no margin; 12 are",
        ),
        (["how_small.range=[0.01,0.01]"], "does not say from where to where quant.fraction goes"),
        (["how_small.key=quant.observer", "how_small.range=[1,2]"], "how_small.key=quant.observer holds auto"),
        (["how_small.range=[0.02,0.9]"], "how_small.range=[0.02,0.9]: quant.fraction=0.9 is out of range"),
        (["how_small.range=[nan,0.02]"], "how_small.range=[nan,0.02] is out of range; allowed: two finite numbers"),
        (["how_small.range=[0.01,0.1]", "how_small.margin=inf"], "how_small.margin=inf is out of range"),
        (["how_small.range=[0.01,0.1]", "calibration.samples=0"], "slimrun: calibration.samples=0 is out of range"),
        (["quant=rdoq", "how_small.key=quant.target_bits", "how_small.min_bits=1"],
         "how_small.min_bits=1: quant.target_bits=1.0 is out of range"),
        (["how_small.key=quant.target_bits"], "how_small.key=quant.target_bits: no such key; name one with a number"),
        (["how_small.key="], "how_small.key= names no key; allowed: one with a number"),
        (["how_small.key=quant.fallback_level", "how_small.range=[0.5,4]"],
         "how_small.range=[0.5,4]: quant.fallback_level is a whole number; name whole numbers"),
        (["how_small.key=quant", "how_small.range=[1,2]"], "how_small.key=quant holds no number; name a key that does"),
        (["how_small.key=quant.fractoin", "how_small.range=[1,2]"], "fractoin: no such key; did you mean quant.fr"),
        (["how_small.range=[0.01,0.1]", "seed=0,1"], "seed=0,1: a search turns one key alone (quant.fraction)"),
        (["how_small.range=[0.01,0.1]", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0 is out of range"),
        (["how_small.range=[0.01,0.1]", "hydra.sweeper.n_trials=few"], "hydra.sweeper.n_trials=few is out of range"),
        (["how_small.range=[0.01,0.1]", "hydra.sweeper.n_trials=null"], "n_trials=None is out of range"),
        (["how_small.range=[0.01,0.1]", "~task.perplexity"], "task: choose at least one, e.g. task=[perplexity]"),
        (["how_small.range=[0.01,0.1]", "gate=nothing.yaml"], "gate=nothing.yaml cannot be read"),
        (["how_small.key=hydra.sweeper.n_trials", "how_small.range=[1,3]"], "n_trials: hydra changes no model; name a"),
        (["how_small.key=how_small.min_bits", "how_small.range=[1,3]"], "how_small.min_bits: how_small changes no"),
        (["how_small.key=quant.target_bits", "how_small.range=[2,3]"], "has no effect on quant.target_bits"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_before_anything_loads(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    status, _, err = slimrun(tmp_path, *HOW_SMALL, *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "multirun").exists()


def test_several_presets_are_named_as_they_were_typed() -> None:
    overrides = ["experiment=[llama2_7b,how_small]"]
    told = origins("how_small.min_bits=2.0 is refused", composed(overrides), composed([]), overrides)
    assert told == ["how_small.min_bits comes from experiment=[llama2_7b,how_small]"]
