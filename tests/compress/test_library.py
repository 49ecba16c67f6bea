"""The codec as a C++ library: installed and found as a package, or a part of another project's build."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).with_name("example")
ROOT = Path(__file__).parents[2]


def cmake(*arguments: object) -> None:
    done = subprocess.run(["cmake", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def configure(tmp_path: Path) -> Callable[[str], None]:
    """Configure the example with one more option in the test's folder."""
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    return lambda option: cmake("-S", EXAMPLE, "-B", tmp_path, "-G", "Unix Makefiles", option)


def test_the_installed_package_is_found_and_runs(configure: Callable[[str], None], built: Path, tmp_path: Path) -> None:
    cmake("--install", built, "--prefix", tmp_path / "prefix")
    configure(f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}")
    cmake("--build", tmp_path)
    done = subprocess.run([tmp_path / "example"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("131072 bytes, then ")
    assert done.stdout.endswith("equal\n")


def test_it_can_be_a_part_of_another_projects_build(configure: Callable[[str], None], tmp_path: Path) -> None:
    configure(f"-DSLIMRUN_SOURCE={ROOT}")
    cmake("--build", tmp_path, "--target", "example.o")  # the library is compiled by the other test
