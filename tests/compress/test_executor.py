"""compress_executor as a program: the contract of ops/csrc/executor.hpp, and the codec that drives it."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from slimrun.msmodelslim.weight_compression import CompressConfig, Compressor
from slimrun.ops.compress.base import to_nz
from slimrun.ops.compress.cann import Cann
from slimrun.ops.compress.nz import NZ

from .arrays import Int8Array, sparse_quantized

ROOT = Path(__file__).parents[2]
NAMES = ["dimK", "dimN", "isTight", "k_value", "n_value", "compressType", "isTiling"]
FILES = ["in.bin", "out.bin", "index.bin", "info.bin"]


@pytest.fixture(scope="session")
def executor(built: Path) -> Path:
    return built / "compress_executor"


@pytest.fixture
def weight() -> Int8Array:
    return sparse_quantized(200 * 300).reshape(200, 300)


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


@pytest.mark.parametrize("shape", [(1, 1), (15, 31), (576, 576), (128, 4096)])
def test_the_codec_gives_what_nz_gives(executor: Path, shape: tuple[int, int]) -> None:
    weight = sparse_quantized(shape[0] * shape[1]).reshape(shape)
    codec = Cann(str(executor))
    parts, expected = codec.encode(weight), NZ().encode(weight)
    assert parts.keys() == expected.keys()
    for name, part in parts.items():
        assert part.dtype == expected[name].dtype
        assert part.tobytes() == expected[name].tobytes()
    assert (codec.container, codec.version) == ("slimrun-nz", 1)
    assert np.array_equal(codec.decode(parts), weight)


def test_a_script_reaches_it(executor: Path, weight: Int8Array) -> None:
    ours = Compressor(CompressConfig(), weight={"one": weight}).run()
    for found, expected in zip(Compressor(CompressConfig(executor=executor), weight={"one": weight}).run(), ours):
        assert found["one"].tobytes() == expected["one"].tobytes()


def test_the_codec_leaves_no_files(
    executor: Path, weight: Int8Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    codec = Cann(str(executor))
    codec.encode(weight)
    with pytest.raises(ValueError, match="exit status"):
        Cann(script(tmp_path / "fake", "exit 3")).encode(weight)
    assert [path.name for path in tmp_path.iterdir()] == ["fake"]


def test_the_program_runs_in_a_private_folder(weight: Int8Array, tmp_path: Path) -> None:
    fake = script(tmp_path / "fake", f"stat -c %a . > {tmp_path}/mode; pwd > {tmp_path}/folder; exit 1")
    with pytest.raises(ValueError, match="exit status 1"):
        Cann(fake).encode(weight)
    assert (tmp_path / "mode").read_text() == "700\n"
    assert not Path((tmp_path / "folder").read_text().strip()).exists()


def test_a_program_that_is_not_there(weight: Int8Array, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    for path, why in ((tmp_path / "none", "does not exist"), (plain, "is not executable"), (tmp_path, "does not")):
        codec = Cann(str(path))
        for use in (lambda codec=codec: codec.encode(weight), lambda codec=codec: codec.container):
            with pytest.raises(
                ValueError, match=rf"^compress\.executor={path} {why}.*; build it: cmake -S .+ -B build"
            ):
                use()
    plain.chmod(0o755)
    plain.write_bytes(b"\0\1\2\3")
    with pytest.raises(ValueError, match=r"^compress\.executor=.* does not start: "):
        Cann(str(plain)).encode(weight)


def test_the_time_limit_ends_all_that_was_started(weight: Int8Array, tmp_path: Path) -> None:
    """The shell waits for a child that holds its output open: both must go, or reading would wait for the child."""
    fake = script(tmp_path / "fake", f"sleep 60 & echo $! > {tmp_path}/child; wait")
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"^compress\.timeout_s=1: "):
        Cann(fake, timeout_s=1).encode(weight)
    assert time.monotonic() - start < 10
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child outlived the time limit")
    with pytest.raises(ValueError, match=r"^timeout_s=0 is out of range"):
        Cann(fake, timeout_s=0)


def test_an_error_carries_the_last_lines_printed(weight: Int8Array, tmp_path: Path) -> None:
    fake = script(tmp_path / "fake", "seq 100000 >&2; echo the reason >&2; exit 7")
    with pytest.raises(ValueError, match=r"failed with exit status 7: 99997 \| .* \| the reason$"):
        Cann(fake).encode(weight)
    with pytest.raises(ValueError, match=r"failed with exit status -9: it printed nothing$"):
        Cann(script(tmp_path / "killed", "kill -9 $$")).encode(weight)


VENDOR = """
[ $# -eq 11 ] || { echo "Please check your input params count is 11."; exit 1; }
head -c 100 "$8" > "$9"; head -c ${INDEX:-32} /dev/zero > "${10}"
printf '\\010\\000\\000\\000\\010\\000\\000\\000\\LENGTH\\000\\000\\000' > "${11}"
"""


def test_the_vendors_program(weight: Int8Array, tmp_path: Path) -> None:
    """It knows no option, its files are taken as they are, and nobody here claims to read them."""
    codec = Cann(script(tmp_path / "vendor", VENDOR.replace("LENGTH", "140")))  # 140 is octal for 96
    parts = codec.encode(weight)
    assert parts["weight"].tobytes() == to_nz(weight).tobytes()[:96]
    assert parts["index"].tobytes() == bytes(32)
    assert parts["info"].tolist() == [8, 8, 300, 200, 1]
    assert (codec.container, codec.version) == ("ascend", 1)
    with pytest.raises(ValueError, match="only the Ascend hardware decodes it"):
        codec.decode(parts)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("LENGTH", "145", "out.bin of 100 bytes, but info.bin says 101"),
        ("LENGTH", "000", "but info.bin says 0"),
        ("INDEX:-32", "INDEX:-31", "index.bin of 31 bytes, expected 32"),
        ("LENGTH", "140\\000", "info.bin of 13 bytes, expected 12"),
        ("'\\010", "'\\000", "tiles of 0 x 8 fractals"),
        ('> "${10}"', "> /dev/null", "wrote no index.bin"),
    ],
)
def test_files_that_do_not_belong_together(weight: Int8Array, tmp_path: Path, old: str, new: str, message: str) -> None:
    text = VENDOR.replace(old, new).replace("LENGTH", "140")
    with pytest.raises(ValueError, match=message):
        Cann(script(tmp_path / "vendor", text)).encode(weight)


def test_cmake_names_what_the_vendors_coder_needs(tmp_path: Path) -> None:
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "ASCEND_HOME_PATH"}
    options = ["-DSLIMRUN_PYTHON=OFF", "-DSLIMRUN_CANN=ON"]
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode > 0
    assert "SLIMRUN_CANN=ON: ASCEND_HOME_PATH" in done.stderr


def cann_headers() -> Path:
    """CANN's headers, where they are: a folder of the user's choice, or those in the wheel of torch_npu."""
    chosen = os.environ.get("SLIMRUN_CANN_INCLUDE")
    wheel = importlib.util.find_spec("torch_npu")
    if chosen:
        return Path(chosen)
    if wheel is None or wheel.origin is None:
        pytest.skip("neither torch_npu nor SLIMRUN_CANN_INCLUDE is there to take CANN's headers from")
    return Path(wheel.origin).parent / "include/third_party/acl/inc"


def test_the_vendors_coder_compiles_against_its_headers() -> None:
    headers = cann_headers()
    if not (headers / "ge/ge_api.h").is_file():
        pytest.skip(f"{headers} has no ge/ge_api.h")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    for string_abi in (0, 1):
        options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-D_GLIBCXX_USE_CXX11_ABI={string_abi}"]
        source = ROOT / "ops/csrc/compress_cann.cpp"
        command = [compiler, "-fsyntax-only", *options, "-isystem", str(headers), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
