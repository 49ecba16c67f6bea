"""What Compressor refuses, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimrun.msmodelslim import npy
from slimrun.msmodelslim.weight_compression import CompressConfig, Compressor

from .weights import DESCRIPTION, MODEL, WEIGHT, export, sparse

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
