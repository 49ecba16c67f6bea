"""Output folders: one start, one folder; nothing of others is followed or replaced."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from slimrun.runner import output
from slimrun.runner.config import ConfigError

FORK = multiprocessing.get_context("fork")
KEY = "hydra.run.dir"


def start(folder: Path, number: int, together: Barrier, by_time: bool) -> None:
    together.wait()
    try:
        with output.claimed(folder, KEY, by_time=by_time) as claimed:
            (claimed / "results.json").write_text(str(number))
            together.wait()
    except ConfigError:
        together.wait()


def run_together(folder: Path, number: int, *, by_time: bool) -> None:
    together = FORK.Barrier(number)
    processes = [FORK.Process(target=start, args=[folder, job, together, by_time]) for job in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * number


def test_starts_of_one_second_have_a_folder_each(tmp_path: Path) -> None:
    run_together(tmp_path / "12-00-00", 8, by_time=True)
    assert {path.name for path in tmp_path.iterdir()} == {"12-00-00", *(f"12-00-00-{number}" for number in range(1, 8))}
    assert sorted(path.read_text() for path in tmp_path.rglob("results.json")) == list("01234567")
    assert not list(tmp_path.rglob(output.LOCK))


def test_one_start_has_the_folder_it_names_and_a_later_one_may_have_it_again(tmp_path: Path) -> None:
    run_together(tmp_path / "run", 4, by_time=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with (
        output.claimed(tmp_path / "run", KEY, by_time=False) as again,
        pytest.raises(ConfigError, match=f"{KEY}=.*/run is being worked on by another slimrun; wait for it, or"),
        output.claimed(tmp_path / "run", KEY, by_time=False),
    ):
        pass
    assert again == tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "make", "why"),
    [
        ("artifact", lambda path, _: path.write_text("mine"), "artifact is a file"),
        ("artifact", lambda path, other: path.symlink_to(other), "artifact is a link"),
        ("artifact", lambda path, _: (path.mkdir(), (path / "thesis.tex").touch()), "something else than a bundle"),
        ("config.yaml", lambda path, other: path.symlink_to(other), "config.yaml is a link"),
        ("run.log", lambda path, other: path.symlink_to(other / "new"), "run.log is a link"),
    ],
)
@pytest.mark.parametrize("job", ["", "0"])
def test_what_is_in_the_way_is_named_and_left(
    tmp_path: Path, name: str, make: Callable[[Path, Path], object], why: str, job: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    place = tmp_path / "run" / job
    place.mkdir(parents=True)
    make(place / name, other)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=f"{KEY}=.*: .*{why}; move it"):
        output.check(tmp_path / "run", KEY)
    with pytest.raises(ConfigError, match=why), output.claimed(tmp_path / "run", KEY, by_time=False):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bundle_of_an_earlier_run_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "quant_model_description_w8a8sc.json").touch()
    output.check(tmp_path, KEY)


@pytest.mark.parametrize(
    "name", ["plain", "it's", 'say "no"', "a,b=c", "${oc.env:HOME}", "back\\", "\\'", "水 {x}", "#"]
)
def test_hydra_takes_the_folder_whatever_its_name(name: str) -> None:
    override = OverridesParser.create().parse_override(output.chosen(KEY, Path("/data") / name))
    config = OmegaConf.create({"dir": override.value()})
    assert config.dir == f"/data/{name}"
