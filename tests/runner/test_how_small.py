"""`slimrun experiment=how_small`: where the search looks, what it answers, what it refuses."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimrun.runner.search import RESOLUTION, START, TRIES, Tried, next_place

from .console import FAST, slimrun

HOW_SMALL = [*FAST, "experiment=how_small", "quant=w8a8s", "how_small.key=quant.fraction", "tracking=none"]
WALK = [*HOW_SMALL, "how_small.range=[0.01,0.1]", "task.perplexity.path=runs.txt", "task.perplexity.windows=20"]


def searched(fall: float, crossing: float, step: float = 0.0) -> list[Tried]:
    """The tries on a dial along which the loss's logarithm falls evenly, and meets the margin at `crossing`."""
    tried: list[Tried] = []
    while (place := next_place(tried, step)) is not None:
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


def test_tries_without_an_interval_halve_what_is_left() -> None:
    assert next_place([Tried(0.3, math.inf, False)]) == pytest.approx(0.65)
    assert next_place([Tried(0.3, math.inf, False), Tried(0.65, math.inf, False)]) == pytest.approx(0.825)


def test_it_answers_in_a_sentence_and_puts_the_bundle_in_place(tmp_path: Path) -> None:
    letters = random.Random(0)  # runs of a letter, which a model with tied embeddings predicts better than chance
    runs = [letters.choice("abcdefghijklmnopqrstuvwxyz") * letters.randint(3, 30) for _ in range(150)]
    (tmp_path / "runs.txt").write_text("".join(runs))
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
    for file in (artifact.parent / winner["folder"] / "artifact").iterdir():
        assert file.samefile(artifact / file.name)
    repro = json.loads((artifact.parent / "0" / "results.json").read_text())["repro"]
    assert "hydra.mode=RUN" in repro

    status, again, err = slimrun(tmp_path, *command)
    assert status == 0
    assert sentence in again
    assert err.count("is done already") == 2

    status, out, err = slimrun(tmp_path, *WALK, "how_small.margin=1e-9")
    assert status == 3, err
    assert "the items of perplexity cannot decide at a margin of 1e-09 %: 20 items decide margins from" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["how_small.range=[0.01,0.1]", "how_small.margin=0"], "how_small.margin=0.0 is out of range"),
        (["how_small.range=[0.01,0.1]", "how_small.task=translation"], "how_small.task=translation is not run"),
        (["how_small.range=[0.01,0.1]", "task=[perplexity,translation]"], "how_small.task: whose verdict is asked"),
        (["how_small.range=[0.01,0.1]", "quant.fraction=0.05"], "quant.fraction=0.05: how_small turns quant.fraction"),
        (["how_small.range=[0.5,0.9]"], "quant.fraction=0.62 is out of range; allowed: 0.01 to 0.1"),
        (["how_small.range=[0.01,0.1]", "task.perplexity.windows=4"], "has 4 items, which decide no margin; 5 are"),
        (["how_small.range=[0.01,0.01]"], "does not say from where to where quant.fraction goes"),
        (["how_small.key=quant.observer", "how_small.range=[1,2]"], "how_small.key=quant.observer holds auto"),
        (["how_small.key=quant.fractoin", "how_small.range=[1,2]"], "quant.fractoin: no such key; did you mean"),
        (["how_small.key=quant.target_bits", "how_small.range=[2,3]"], "has no effect on quant.target_bits"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_anything_loads(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    status, _, err = slimrun(tmp_path, *HOW_SMALL, *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "multirun").exists()
