"""Weight compression under the original's names: what it gives and writes, and every message."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimrun.msmodelslim import npy
from slimrun.msmodelslim import weight_compression as compression
from slimrun.msmodelslim.weight_compression import CompressConfig, Compressor
from slimrun.ops.compress.nz import NZ

from .weights import DESCRIPTION, MODEL, WEIGHT, export, mode, sparse


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

    monkeypatch.setattr("slimrun.msmodelslim.files.write_json", full)
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


NO_RATIO = "sparse_ratio is invalid, expected an value in [0, 1], but got"


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"do_pseudo_sparse": "x"}, TypeError, "do_pseudo_sparse must be bool, not str."),
        ({"do_pseudo_sparse": True, "sparse_ratio": 2}, ValueError, f"{NO_RATIO} 2"),
        ({"do_pseudo_sparse": True, "sparse_ratio": float("nan")}, ValueError, f"{NO_RATIO} nan"),
        ({"do_pseudo_sparse": True, "sparse_ratio": "1"}, ValueError, f"{NO_RATIO} 1"),
        ({"is_debug": 1}, TypeError, "is_debug must be bool, not int."),
        ({"compress_disable_layers": "a"}, TypeError, "compress_disable_layers must be tuple or list, not str."),
        ({"compress_disable_layers": [1]}, TypeError, "Element in compress_disable_layers must be str, not int."),
        ({"record_detail_root": 1}, ValueError, "record_detail_root is invalid, expected a string, but got 1"),
        ({"multiprocess_num": 0}, ValueError, "multiprocess_num is invalid, expected an int (>=1), but got 0"),
        ({"multiprocess_num": 1.0}, ValueError, "multiprocess_num is invalid, expected an int (>=1), but got 1.0"),
        ({"multiprocess_num": True}, ValueError, "multiprocess_num is invalid, expected an int (>=1), but got True"),
        ({"seed": -1}, ValueError, "seed is invalid, expected an int (>=0), but got -1"),
        ({"confirm": "yes"}, TypeError, "confirm must be bool, not str."),
        ({"executor": 1}, TypeError, "executor must be str, Path or None, not int."),
    ],
)
def test_wrong_keywords(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        CompressConfig(**keywords)
    assert str(caught.value) == message


def test_keywords_in_the_originals_order_and_a_ratio_that_is_not_used() -> None:
    config = CompressConfig(False, 2, True, ("a",), "./x", 3)
    assert (config.sparse_ratio, config.is_debug, config.record_detail_root) == (2, True, "./x")
    assert (config.compress_disable_layers, config.multiprocess_num, config.confirm) == (("a",), 3, False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1,), TypeError, "Invalid `config`: expected a CompressConfig instance, but received 1"),
        ((CompressConfig(),), ValueError, "Weight Loading failed! Please provide valid quant weight input"),
        ((CompressConfig(), "x.npy", WEIGHT), ValueError, "Weight Loading failed! .* both is given"),
        ((CompressConfig(), 3), TypeError, "weight_path must be str, not int"),
        ((CompressConfig(), "x.bin"), ValueError, r'The filename x.bin doesn\'t endswith ".npy"\.'),
        ((CompressConfig(), "no/x.npy"), FileNotFoundError, r"The path no/x.npy doesn't exist or is not a file\."),
        ((CompressConfig(), None, [1]), TypeError, "weight must be dict, not list"),
        ((CompressConfig(), None, WEIGHT, "x"), TypeError, "quant_model_description must be dict, not str"),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Compressor(*arguments)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"x\.npy: is no numpy file of a dictionary: is truncated"):
        Compressor(CompressConfig(), str(tmp_path / "x.npy"))


def test_the_notice_is_given_and_nobody_is_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(_: str) -> str:
        raise AssertionError("stdin was touched")

    monkeypatch.setattr("builtins.input", asked)
    npy.save(tmp_path / "x.npy", WEIGHT)
    Compressor(CompressConfig(), str(tmp_path / "x.npy"))
    assert "deserialize" in caplog.text
    assert "risk" in caplog.text
    assert "executes nothing" in caplog.text


@pytest.mark.parametrize("answer", ["no", "", "YES", "y", None])
def test_confirm_asks_and_takes_nothing_but_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None
) -> None:
    def say(_: str) -> str:
        if answer is None:
            raise EOFError
        return answer

    npy.save(tmp_path / "x.npy", WEIGHT)
    monkeypatch.setattr("builtins.input", say)
    with pytest.raises(Exception, match=r"^Loading is prohibited because the data may be from untrusted sources\.$"):
        Compressor(CompressConfig(confirm=True), str(tmp_path / "x.npy"))
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    assert Compressor(CompressConfig(confirm=True), str(tmp_path / "x.npy")).weight.keys() == WEIGHT.keys()


def test_a_disabled_layer_that_is_not_there_is_named_with_what_comes_near() -> None:
    config = CompressConfig(compress_disable_layers=["layers.0.q_porj"])
    with pytest.raises(ValueError, match=r"invalid key `layers.0.q_porj`; near it: layers\.0\.q_proj"):
        Compressor(config, weight=WEIGHT).run()


@pytest.mark.parametrize("key", ["../a", "a/b", "/etc/a", "a\\b", "a\0b", ".", "..", ""])
def test_keys_that_lead_out_of_the_folder_are_refused(tmp_path: Path, key: str) -> None:
    compressor = Compressor(CompressConfig(), weight={"good": sparse(2, 2), key: sparse(2, 2)})
    with pytest.raises(ValueError, match="is refused: it is to be the name of a file"):
        export(compressor, tmp_path / "deep" / "er")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arr", "dtype", "error", "message"),
    [
        ({"a": np.zeros(1, np.int8)}, np.int32, ValueError, "dtype must be numpy.int8, numpy.int64!"),
        ({"a": np.zeros(1, np.int8)}, None, ValueError, "dtype must be numpy.int8, numpy.int64!"),
        ({"a": np.zeros(1, np.int64)}, np.int8, ValueError, "a holds int64, but dtype is int8"),
        ({"a": [1]}, np.int8, TypeError, r"arr\['a'\] must be ndarray, not list"),
        ({1: np.zeros(1, np.int8)}, np.int8, TypeError, "key of arr must be str, not int"),
        ([1], np.int8, TypeError, "arr must be dict, not list"),
    ],
)
def test_wrong_exports(tmp_path: Path, arr: Any, dtype: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Compressor(CompressConfig(), weight=WEIGHT).export(arr, tmp_path, dtype)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_write_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = Compressor(CompressConfig(), weight=MODEL, quant_model_description=DESCRIPTION)
    weight, *_ = compressor.run()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(PermissionError, match=f"{tmp_path}: no permission to write into this folder"):
        compressor.export(weight, tmp_path)
    with pytest.raises(PermissionError, match=f"{tmp_path}: no permission to write into this folder"):
        compressor.export_safetensors(tmp_path)
    compressor.config = CompressConfig(is_debug=True, record_detail_root=str(tmp_path))
    with pytest.raises(PermissionError, match="no permission"):
        compressor.run()


def test_the_module_does_without_transformers() -> None:
    script = "import sys, slimrun.msmodelslim.weight_compression as w; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
