"""Weight compression under the original's names: what it gives and writes, and every message."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from slimrun.msmodelslim import weight_compression as compression
from slimrun.msmodelslim.weight_compression import CompressConfig, Compressor
from slimrun.ops.compress.nz import NZ

from .weights import DESCRIPTION, MODEL, WEIGHT, mode


def test_run_gives_what_the_original_does_by_shape_and_type() -> None:
    config = CompressConfig(compress_disable_layers=["layers.1.one"])
    weight, index, info = Compressor(config, weight=WEIGHT).run()
    assert list(weight) == list(index) == list(info) == list(WEIGHT)
    assert weight["layers.1.large"].dtype == index["layers.1.large"].dtype == np.int8
    assert weight["layers.1.large"].ndim == index["layers.1.large"].ndim == 1
    assert index["layers.1.large"].size == 8 * 3 * 3  # tiles of 128 rows and 256 columns
    assert info["layers.1.large"].tolist() == [8, 8, 600, 300, 1]
    assert info["layers.1.large"].dtype == np.int64
    assert weight["layers.1.large"].size < 0.6 * 300 * 600
    assert weight["layers.1.one"].shape == (1, 1, 16, 32)
    assert index["layers.1.one"].size == 0
    assert info["layers.1.one"].tolist() == [8, 8, 1, 1, 1]


def test_safetensors_under_other_names(tmp_path: Path) -> None:
    compressor = Compressor(CompressConfig(), weight=MODEL, quant_model_description=DESCRIPTION)
    compressor.run()
    compressor.export_safetensors(tmp_path, "a.safetensors", "b.json")
    assert {file.name for file in tmp_path.iterdir()} == {"a.safetensors", "b.json"}
    for names in [("../a.safetensors",), ("a.bin",), (".safetensors",), (None, "x/b.json"), (None, "b.txt")]:
        with pytest.raises(ValueError, match=r"_name = .* is invalid; allowed: the name of a file that ends in \."):
            compressor.export_safetensors(tmp_path, *names)
    with pytest.raises(TypeError, match="json_name must be str, not int"):
        compressor.export_safetensors(tmp_path, json_name=1)  # type: ignore[arg-type]


def test_safetensors_want_a_description_a_run_and_every_type(tmp_path: Path) -> None:
    compressor = Compressor(CompressConfig(), weight=WEIGHT)
    compressor.run()
    with pytest.raises(ValueError, match="export_safetensors needs the types of all tensors"):
        compressor.export_safetensors(tmp_path)
    compressor = Compressor(CompressConfig(), weight=MODEL, quant_model_description=DESCRIPTION)
    with pytest.raises(ValueError, match="call run"):
        compressor.export_safetensors(tmp_path)
    compressor = Compressor(CompressConfig(), weight={**MODEL, "x": torch.ones(1)}, quant_model_description=DESCRIPTION)
    compressor.run()
    with pytest.raises(ValueError, match="quant_model_description does not name x"):
        compressor.export_safetensors(tmp_path)
    described = {**DESCRIPTION, "x": "FLOAT"}
    compressor = Compressor(CompressConfig(), weight={**MODEL, "x": "a"}, quant_model_description=described)  # type: ignore[dict-item]
    compressor.run()
    with pytest.raises(ValueError, match="x is str, expected an array of numbers"):
        compressor.export_safetensors(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = Compressor(CompressConfig(), weight=MODEL, quant_model_description=DESCRIPTION)
    compressor.run()
    compressor.export_safetensors(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slimrun.msmodelslim.saving.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        compressor.export_safetensors(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_script_says_what_compression_took_away(capsys: pytest.CaptureFixture[str]) -> None:
    parts = Compressor(CompressConfig(), weight=WEIGHT).run()
    raw = sum(math.prod(matrix.shape) for matrix in WEIGHT.values())
    packed = sum(array.nbytes for part in parts for array in part.values())
    said = capsys.readouterr()
    assert f"{raw:,} bytes of weights are {packed:,} compressed, ratio {raw / packed:.3f}" in said.err
    assert not said.out


def test_details_say_what_each_matrix_takes(tmp_path: Path) -> None:
    config = CompressConfig(is_debug=True, record_detail_root=str(tmp_path / "new"))
    for _ in range(2):
        weight, index, info = Compressor(config, weight=WEIGHT).run()
    assert mode(tmp_path / "new" / "compress_detail.csv") == 0o600
    with (tmp_path / "new" / "compress_detail.csv").open(newline="") as stream:
        rows = {row["key"]: row for row in csv.DictReader(stream)}
    assert rows.keys() == WEIGHT.keys()
    row, key = rows["layers.1.large"], "layers.1.large"
    packed = weight[key].nbytes + index[key].nbytes + info[key].nbytes
    assert (row["shape"], row["raw bytes"], row["packed bytes"]) == ("300x600", "180000", str(packed))
    assert float(row["ratio"]) == pytest.approx(180000 / packed, abs=1e-4)
    assert 3 < float(row["entropy bits"]) < 4


def test_progress_is_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Compressor(CompressConfig(), weight=WEIGHT).run()
    said = capsys.readouterr()
    assert "compress" in said.err
    assert "bytes of weights are" in said.err
    assert "Ascend hardware cannot decode it: the coding is slimrun-nz; CompressConfig(executor=PATH) takes" in said.err
    assert not said.out


def vendor(file: Path, does: str = "") -> Path:
    """A program that takes the arguments of CANN's, and writes files of the sizes that it would."""
    file.write_text(
        "#!/bin/sh\n"
        '[ $# -eq 11 ] || { echo "Please check your input params count is 11."; exit 1; }\n'
        f"{does}\n"
        "tiles=$(( ($1 + 7) / 8 * (($2 + 7) / 8) ))\n"
        'head -c 16 "$8" > "$9"; head -c $((8 * tiles)) /dev/zero > "${10}"\n'
        "printf '\\010\\000\\000\\000\\010\\000\\000\\000\\020\\000\\000\\000' > \"${11}\"\n"
    )
    file.chmod(0o700)
    return file


def test_another_program_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = CompressConfig(executor=vendor(tmp_path / "program"), multiprocess_num=2)
    compressor = Compressor(config, weight=MODEL, quant_model_description=DESCRIPTION)
    weight, index, info = compressor.run()
    assert {part.nbytes for part in weight.values()} == {16}
    for key, sizes in info.items():
        assert index[key].size == 8 * -(-sizes[2] // 256) * -(-sizes[3] // 128)
    assert "cannot decode" not in capsys.readouterr().err
    compressor.export_safetensors(tmp_path / "out")
    types = json.loads((tmp_path / "out" / "quant_model_description_w8a8sc.json").read_text())
    assert types["container"] == {"name": "ascend", "version": 1}


def test_a_program_that_fails_is_named_before_and_after(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^executor=nowhere does not exist; build it: "):
        Compressor(CompressConfig(executor="nowhere"), weight_path="not looked at.npy")
    config = CompressConfig(executor=str(vendor(tmp_path / "program", "echo broken; exit 3")))
    with pytest.raises(ValueError, match=r"^layers.*: executor=.*program failed with exit status 3: broken$"):
        Compressor(config, weight=WEIGHT).run()


def test_more_threads_than_cores_are_the_cores(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    used = []

    class Codec(NZ):
        def __post_init__(self) -> None:
            used.append(self.threads)

    monkeypatch.setattr(compression, "NZ", Codec)
    with caplog.at_level(logging.INFO):
        Compressor(CompressConfig(multiprocess_num=5), weight=WEIGHT).run()
        Compressor(CompressConfig(multiprocess_num=4), weight=WEIGHT).run()
    assert used == [4, 4]
    assert caplog.messages == ["multiprocess_num=5 is more than the 4 cores of this machine, which are used"]
