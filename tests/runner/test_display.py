"""What is shown is shown as it is, whatever the terminal takes."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from pathlib import Path

import pytest

from slimrun.runner import display
from slimrun.runner.display import SoFar, Stages, print_anything, print_table
from slimrun.runner.folder import read_json, write_json


@pytest.mark.parametrize("name", ["[/red]", "[bold", "\\[", "{x}"])
def test_names_are_no_markup(capfd: pytest.CaptureFixture[str], name: str) -> None:
    with Stages() as stages, stages("load", name):
        pass
    print_table(name, [name, "value"], [[name, name]])
    out, err = capfd.readouterr()
    assert out.count(name) == 4
    assert name in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_a_character_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    name = os.fsdecode("caf\udce9 水".encode("utf-8", "surrogateescape"))  # a folder's name in an old encoding
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    print_anything()
    print(name)
    print_table(name, ["", "value"], [["bundle", name]])
    with Stages() as stages, stages("load", name):
        pass
    for stream in streams:
        stream.flush()
        assert b"caf" in stream.buffer.getvalue()  # type: ignore[attr-defined]
    write_json(tmp_path / "results.json", {"repro": name})
    assert read_json(tmp_path / "results.json") == {"repro": name}


COLUMNS = ["task", "float", "difference", "95 % interval", "verdict"]
ROW = ["multiple_choice: probability of the answer", "0.5096", "-0.07334", "-0.1238 to -0.02293", "inconclusive"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_narrow_terminal_loses_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width) if width < 200 else "")  # nobody's window is wide
    print_table("", COLUMNS, [ROW])
    out = capfd.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert {word for cell in (*COLUMNS, *ROW) for word in cell.split()} <= set(out.split())
    if width != 80:  # where the widest column is folded
        assert all(cell in out for cell in ROW)
    assert (max(ROW, key=len) in out.splitlines()[0]) == (width == 60)  # a paragraph a row


def test_what_is_left_goes_by_the_part_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    so_far = SoFar("quantize")
    assert str(so_far) == "quantize"
    for done in range(1, 121):
        clock[0] += 0.5
        so_far.told(done, 1200)
    assert str(so_far) == "quantize: 120 of 1200, 0:09:00 left"
    clock[0] += 60
    so_far.told(1, 10, "rounding")  # of which nothing is known yet
    assert str(so_far) == "quantize, rounding: 1 of 10"
    clock[0] += 60
    so_far.told(3, 10, "rounding")
    assert str(so_far) == "quantize, rounding: 3 of 10, 0:03:30 left"
    so_far.told(1, 10, "rounding")  # once more
    assert str(so_far) == "quantize, rounding: 1 of 10"


def test_where_nobody_looks_a_stage_says_again_and_again_how_far_it_is(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "QUIET_SECONDS", 0.001)

    def often(line: str) -> bool:
        return [message.partition("] ")[2] for message in caplog.messages].count(line) > 2

    def wait_for(line: str) -> None:
        assert any(often(line) or time.sleep(0.002) for _ in range(5000))

    with caplog.at_level("INFO", "slimrun"), Stages() as stages, stages("calibrate") as tick:
        wait_for("calibrate")  # though nothing has told how far it is
        tick(1, 10, "ranges")
        wait_for("calibrate, ranges: 1 of 10")
    *said, table = caplog.messages
    assert said == capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"stages:\ncalibrate +\d+\.\d s\ntogether +\d+\.\d s", table)
    time.sleep(0.01)
    assert caplog.messages == [*said, table]


def test_steps_say_no_lines_of_their_own(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "slimrun"), Stages() as stages, stages("calibrate") as tick:
        for done in range(1, 1201):
            tick(done, 1200)
    said = [line.partition("] ")[2] for line in capfd.readouterr().err.splitlines()]
    assert said == ["calibrate"]
    assert len(caplog.messages) == 2  # the table too
