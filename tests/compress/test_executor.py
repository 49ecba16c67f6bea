"""compress_executor as a program: the contract of ops/csrc/executor.hpp."""

from __future__ import annotations

import os
import resource
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slimrun.ops.compress.base import to_nz
from slimrun.ops.compress.nz import NZ

from .arrays import Int8Array

ROOT = Path(__file__).parents[2]
NAMES = ["dimK", "dimN", "isTight", "k_value", "n_value", "compressType", "isTiling"]
FILES = ["in.bin", "out.bin", "index.bin", "info.bin"]


class Call:
    """A call of the program that is right, until a test changes something about it."""

    def __init__(self, program: Path, folder: Path, weight: Int8Array) -> None:
        fractals = to_nz(weight)
        fractals.tofile(folder / "in.bin")
        self.program = program
        self.folder = folder
        k1, n1 = fractals.shape[:2]
        self.arguments = dict(zip(NAMES, map(str, (k1, n1, 1, 1, 1, 0, 0)), strict=True))
        self.arguments |= {name: str(folder / name) for name in FILES}

    def run(self, prepare: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.program), *self.arguments.values()]
        return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=prepare)

    def fails(self, prepare: Callable[[], None] | None = None) -> str:
        """What it says when it fails; then it has written nothing and has left nothing behind."""
        before = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        done = self.run(prepare)
        assert done.returncode > 0
        assert done.stdout == ""
        assert done.stderr.startswith("compress_executor: ")
        assert done.stderr.count("\n") == 1
        assert before == {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        return done.stderr.removeprefix("compress_executor: ").strip()


@pytest.fixture
def call(executor: Path, tmp_path: Path, weight: Int8Array) -> Call:
    return Call(executor, tmp_path, weight)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_three_files_of_the_right_sizes(call: Call, weight: Int8Array) -> None:
    done = call.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    out, index, info = ((call.folder / name).read_bytes() for name in FILES[1:])
    parts = NZ().encode(weight)
    assert out == parts["weight"].tobytes()
    assert index == parts["index"].tobytes()
    assert len(index) == 8 * 2 * 2
    assert struct.unpack("<3I", info) == (8, 8, len(out))
    for name in FILES[1:]:
        assert stat.S_IMODE((call.folder / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in call.folder.iterdir()) == sorted(FILES)


def test_files_that_are_there_are_replaced(call: Call) -> None:
    for name in FILES[1:]:
        (call.folder / name).write_bytes(b"old and longer than the new one" * 9999)
        (call.folder / name).chmod(0o400)
    assert call.run().returncode == 0
    assert (call.folder / "info.bin").stat().st_size == 12
    first = (call.folder / "out.bin").read_bytes()
    assert call.run().returncode == 0
    assert (call.folder / "out.bin").read_bytes() == first


def test_names_without_a_folder_mean_the_current_one(call: Call) -> None:
    numbers = [call.arguments[name] for name in NAMES]
    done = subprocess.run([call.program, *numbers, *FILES], cwd=call.folder, check=False)
    assert done.returncode == 0
    assert sorted(path.name for path in call.folder.iterdir()) == sorted(FILES)


def test_both_kinds_of_weights_are_coded(call: Call) -> None:
    assert call.run().returncode == 0
    low = (call.folder / "out.bin").read_bytes()
    call.arguments["compressType"] = "1"
    assert call.run().returncode == 0
    assert (call.folder / "out.bin").read_bytes() == low


@pytest.mark.parametrize("count", [0, 1, 10, 12, 20])
def test_another_count_of_arguments(executor: Path, count: int) -> None:
    done = subprocess.run([executor, *["1"] * count], capture_output=True, text=True, check=False)
    assert done.returncode > 0
    assert done.stderr == "Please check your input params count is 11.\n"


def test_help_and_container(executor: Path) -> None:
    done = subprocess.run([executor, "--container"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("slimrun-nz 1\n", "")
    done = subprocess.run([executor, "--help"], capture_output=True, text=True, check=True)
    for name in (*NAMES, *FILES):
        assert name in done.stdout


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["", "x", "1.0", "1e0", "+1", " 1", "1 ", "0x1", "--1", "١", "1\n1"])
def test_what_is_no_number(call: Call, name: str, value: str) -> None:
    call.arguments[name] = value
    assert call.fails().startswith(f"{name}={value.replace(chr(10), '?')} is not a whole number; allowed: ".rstrip())


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("dimK", ["0", "-1", "50001", "99999999999999999999", "-99999999999999999999"], "1 to 50000"),
        ("dimN", ["0", "-1", "50001", "4294967297"], "1 to 50000"),
        ("isTight", ["0", "2", "-1"], "1"),
        ("k_value", ["0", "2", "-1"], "1"),
        ("n_value", ["0", "2", "-1"], "1"),
        ("compressType", ["-1", "2", "256"], "0 to 1"),
        ("isTiling", ["-1", "1"], "0"),
    ],
)
def test_numbers_out_of_range(call: Call, name: str, values: list[str], allowed: str) -> None:
    for value in values:
        call.arguments[name] = value
        assert call.fails() == f"{name}={value} is out of range; allowed: {allowed}"


def test_an_input_of_another_size(call: Call) -> None:
    expected = (call.folder / "in.bin").stat().st_size
    for size in (0, 1, expected - 1, expected + 1):
        with (call.folder / "in.bin").open("r+b") as file:
            file.truncate(size)
        message = f"has {size} bytes; allowed: {expected}, which is dimK * dimN * 512"
        assert call.fails() == f"in.bin={call.folder}/in.bin {message}"
    call.arguments |= {"dimK": "50000", "dimN": "50000"}
    assert "allowed: 1280000000000" in call.fails()


def test_an_input_that_cannot_be_read(call: Call) -> None:
    call.arguments["in.bin"] = str(call.folder / "missing.bin")
    assert call.fails() == f"in.bin={call.folder}/missing.bin cannot be read: No such file or directory"
    for path in (call.folder, Path("/dev/zero")):
        call.arguments["in.bin"] = str(path)
        assert call.fails() == f"in.bin={path} is no regular file; allowed: a regular file"
    os.mkfifo(call.folder / "pipe")
    call.arguments["in.bin"] = str(call.folder / "pipe")
    assert "is no regular file" in call.fails()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(call: Call) -> None:
    locked = call.folder / "locked"
    locked.mkdir(mode=0o500)
    call.arguments["info.bin"] = str(locked / "info.bin")
    assert call.fails() == f"info.bin={locked}/info.bin cannot be written: Permission denied"
    (call.folder / "in.bin").chmod(0)
    call.arguments["info.bin"] = str(call.folder / "info.bin")
    assert "cannot be read: Permission denied" in call.run().stderr


@pytest.mark.parametrize("name", FILES[1:])
def test_an_output_that_cannot_be_written(call: Call, name: str) -> None:
    call.arguments[name] = str(call.folder / "nowhere" / name)
    assert call.fails() == f"{name}={call.folder}/nowhere/{name} cannot be written: No such file or directory"
    for path in (str(call.folder), "/dev/null"):
        call.arguments[name] = path
        assert call.fails() == f"{name}={path} is no regular file; allowed: a file, there or not"
    call.arguments[name] = ""
    assert call.fails() == f"{name}= is empty; allowed: the name of a file"


def test_files_that_are_the_same(call: Call) -> None:
    (call.folder / "link.bin").symlink_to("in.bin")
    for name, other in (("out.bin", "in.bin"), ("index.bin", "./out.bin"), ("info.bin", "link.bin")):
        call.arguments[name] = f"{call.folder}/{other}"
        assert "is the same file as" in call.fails()
        call.arguments[name] = str(call.folder / name)


def test_a_full_disk_leaves_nothing_behind(call: Call) -> None:
    """A limit on the size of files stands for a disk without room."""
    (call.folder / "out.bin").write_bytes(b"old")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    assert call.fails(limit) == f"out.bin={call.folder}/out.bin cannot be written: File too large"
