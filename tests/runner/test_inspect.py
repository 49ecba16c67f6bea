"""slimrun-inspect on bundles, coded arrays and what is neither."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from slimrun.ops import compress
from slimrun.ops.bundle import size
from slimrun.ops.compress.base import Codec
from slimrun.ops.compress.native import Native
from slimrun.ops.compress.none import NoCompression
from slimrun.ops.compress.nz import NZ
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.runner.inspect import main

from ..compress.arrays import MATRICES
from ..conftest import tiny
from ..test_bundle import write

NAME = "model.layers.1.mlp.down_proj"


def inspect(*arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr, in this process: one of its own takes seconds to import all."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["slimrun-inspect", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main()
    return int(end.value.code or 0), out.getvalue(), err.getvalue()


def test_the_program(tmp_path: Path) -> None:
    (tmp_path / "a.slrn").write_bytes(compress.encode(np.arange(100, dtype=np.int8)))
    command = [sys.executable, "-c", "from slimrun.runner.inspect import main; main()", str(tmp_path / "a.slrn")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == inspect(tmp_path / "a.slrn")


@pytest.mark.parametrize("codec", [Native(tile_size=4096), NZ(), NoCompression()], ids=["native", "nz", "none"])
def test_a_bundle(tmp_path: Path, tiny_model: TorchModel, codec: Codec) -> None:
    tensors = write(tmp_path / "artifact", tiny_model, W8A8S(), codec)
    status, out, err = inspect(tmp_path / "artifact")
    assert (status, err) == (0, "")
    assert inspect(tmp_path)[1].splitlines()[2:] == out.splitlines()[2:], "the run's folder is enough"
    line = next(line for line in out.splitlines() if NAME in line)
    entropy = compress.entropy_bits(tensors[f"{NAME}.weight"].numpy())
    assert "64x128" in line
    assert f"{entropy:.3f}" in line
    assert ("2 rans" in line) == isinstance(codec, Native)
    [file] = (tmp_path / "artifact").glob("*.safetensors")
    parameters = sum(parameter.numel() for parameter in tiny().module.parameters())
    bits = 8 * file.stat().st_size / parameters
    assert f"{file.name}: {file.stat().st_size:,} bytes, {bits:.3f} bits for each of {parameters:,} parameters" in out
    assert f"all files: {size(tmp_path / 'artifact'):,} bytes" in out


def test_the_tile_map_of_a_coded_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [np.zeros(4096), rng.integers(-128, 128, 4096), rng.normal(0, 2, 5000).round()]
    (tmp_path / "a.slrn").write_bytes(compress.encode(np.concatenate(parts).astype(np.int8), tile_size=4096))
    status, out, _ = inspect(tmp_path / "a.slrn")
    assert status == 0
    assert "13192" in out
    assert "2 rans 1 raw 1 constant" in out
    status, out, _ = inspect(tmp_path / "a.slrn", "--map", "a.slrn")
    assert status == 0
    assert "4 tiles of 4096 elements" in out
    assert "8.00*" in out
    assert "0.00" in out


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("unequal_rows_and_columns", "16 row classes, 2 column classes"),
        ("grids_by_row", "levels by row"),
        ("large_low_bits", "raw low bits"),
    ],
)
def test_what_the_model_has(tmp_path: Path, kind: str, words: str) -> None:
    (tmp_path / "a").write_bytes(compress.encode(MATRICES[kind]))
    assert words in inspect(tmp_path / "a")[1]


def test_what_is_wrong_is_one_line(tmp_path: Path, tiny_model: TorchModel) -> None:
    write(tmp_path / "artifact", tiny_model, W8A8S(), Native())
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no container, but long enough for one" * 9)
    for arguments, message in (
        ([tmp_path / "nothing"], "No such file"),
        ([tmp_path / "text"], "not a slimrun container"),
        ([tmp_path / "empty"], "is no bundle"),
        ([tmp_path / "artifact", "--map", "x"], "holds no coded tensor x; the first are: model.layers"),
    ):
        status, out, err = inspect(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert message in err
