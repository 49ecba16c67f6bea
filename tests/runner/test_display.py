"""What is shown is shown as it is, whatever the terminal takes."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

import pytest

from slimrun.runner.display import Stages, print_anything, print_table
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


def test_where_nobody_looks_a_stage_says_a_line_a_minute(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with caplog.at_level("INFO", "slimrun"), Stages() as stages, stages("calibrate") as tick:
        for done in range(1, 601):
            clock[0] += 0.5
            tick(done, 1200)
        clock[0] += 60
        tick(1, 10)  # another part of the stage, of which nothing is known yet
        clock[0] += 60
        tick(3, 10)
    said = [line.partition("] ")[2] for line in capfd.readouterr().err.splitlines()]
    assert said == [
        "calibrate",
        "calibrate: 120 of 1200, 0:09:00 left",
        "calibrate: 240 of 1200, 0:08:00 left",
        "calibrate: 360 of 1200, 0:07:00 left",
        "calibrate: 480 of 1200, 0:06:00 left",
        "calibrate: 600 of 1200, 0:05:00 left",
        "calibrate: 1 of 10",
        "calibrate: 3 of 10, 0:03:30 left",
    ]
    assert [message.partition("] ")[2] for message in caplog.messages[:-1]] == said
    assert caplog.messages[-1].splitlines() == ["stages:", "calibrate        420.0 s", "together         420.0 s"]
