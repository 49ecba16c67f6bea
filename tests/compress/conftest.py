"""The C++ part without Python, built once for all tests that run or install it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from .arrays import Int8Array, sparse_quantized

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build folder, made as the README says, or by the compiler alone where there is no cmake."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    build = shared / "build"
    with FileLock(shared / "build.lock"):
        if not build.exists():
            _build(build)
    return build


def _build(build: Path) -> None:
    if shutil.which("cmake"):
        options = ["-DSLIMRUN_PYTHON=OFF", "-DCMAKE_BUILD_TYPE=Release"]
        commands = [["cmake", "-S", str(ROOT), "-B", str(build), *options], ["cmake", "--build", str(build), "-j2"]]
    else:
        only_elsewhere = ("bindings.cpp", "int8.cpp", "compress_cann.cpp")
        sources = [str(file) for file in (ROOT / "ops/csrc").glob("*.cpp") if file.name not in only_elsewhere]
        compiler = os.environ.get("CXX", "c++")
        build.mkdir()
        commands = [[compiler, "-std=c++17", "-O2", *sources, "-o", str(build / "compress_executor"), "-pthread"]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def executor(built: Path) -> Path:
    return built / "compress_executor"


@pytest.fixture
def weight() -> Int8Array:
    return sparse_quantized(200 * 300).reshape(200, 300)
