"""The codec that drives a program with the interface of compress_executor: ours, scripts, and the vendor's."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from slimrun.msmodelslim.weight_compression import CompressConfig, Compressor
from slimrun.ops.compress.base import to_nz
from slimrun.ops.compress.cann import Cann
from slimrun.ops.compress.nz import NZ

from .arrays import Int8Array, sparse_quantized
from .test_executor import ROOT, script


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
    for theirs, expected in zip(Compressor(CompressConfig(executor=executor), weight={"one": weight}).run(), ours):
        assert theirs["one"].tobytes() == expected["one"].tobytes()


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
