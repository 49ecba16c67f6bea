"""Weight compression under the original's names: equal matrices through both kinds of files, and every message."""

from __future__ import annotations

import csv
import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file

from ops.compress.nz import NZ
from ops.msmodelslim import npy
from ops.msmodelslim import weight_compression as compression
from ops.msmodelslim.weight_compression import (
    CompressConfig,
    Compressor,
    matrices,
    read_dat,
    read_safetensors,
    verify,
)

ROOTS = ("weight", "index", "info")


def sparse(n: int, k: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int8]]:
    return np.rint(np.random.default_rng(seed).normal(0, 2.5, (n, k))).clip(-127, 127).astype(np.int8)


WEIGHT: dict[str, npy.Entry] = {
    "layers.0.q_proj": sparse(64, 96),
    "layers.0.k_proj": torch.from_numpy(sparse(33, 257, 1)),
    "layers.1.one": sparse(1, 1, 2),
    "layers.1.large": sparse(300, 600, 3),
}
NAMES = ["layers.0.q_proj", "layers.0.k_proj"]
MODEL: dict[str, npy.Entry] = {
    **{f"{name}.weight": WEIGHT[name] for name in NAMES},
    "layers.0.q_proj.deq_scale": torch.arange(64),
    "layers.0.q_proj.bias": torch.ones(64, dtype=torch.float16),
    "layers.0.norm.weight": torch.ones(96, dtype=torch.bfloat16),
    "layers.0.norm.module.weight": torch.ones(96),
    "embed.weight": np.linspace(0, 1, 32, dtype=">f4").reshape(8, 4),
}
MODEL["lm_head.weight"] = MODEL["tied"] = torch.randn(8, 4).T
DESCRIPTION = {
    "model_quant_type": "W8A8S",
    "version": "1.0.0",
    **{f"{name}.weight": "W8A8S" for name in NAMES},
    "layers.0.q_proj.deq_scale": "W8A8S",
    "layers.0.q_proj.bias": "FLOAT",
    "layers.0.norm.weight": "FLOAT",
    "layers.0.norm.module.weight": "W8A8S",
    **dict.fromkeys(["embed.weight", "lm_head.weight", "tied"], "FLOAT"),
}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def export(compressor: Compressor, folder: Path, **keywords: Any) -> list[Path]:
    roots = [folder / root for root in ROOTS]
    for part, root in zip(compressor.run(**keywords), roots):
        compressor.export(part, root, np.int64 if root.name == "info" else np.int8)
    return roots


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("disabled", [None, ["layers.0.k_proj"], tuple(WEIGHT)])
def test_dat_files_restore_equal_matrices(tmp_path: Path, threads: int, disabled: Any) -> None:
    npy.save(tmp_path / "quant_weight.npy", WEIGHT)
    config = CompressConfig(compress_disable_layers=disabled, multiprocess_num=threads)
    compressor = Compressor(config, str(tmp_path / "quant_weight.npy"))
    for _ in range(2):  # the second replaces read-only files
        roots = export(compressor, tmp_path / "compress")
    restored = read_dat(*roots)
    verify(WEIGHT, restored)
    assert restored.keys() == WEIGHT.keys()
    assert all(matrix.dtype == np.int8 for matrix in restored.values())
    for root in roots:
        assert mode(root) == 0o750
        assert {file.name for file in root.iterdir()} == {f"{key}.dat" for key in WEIGHT}
        assert {mode(file) for file in root.iterdir()} == {0o400}


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


def test_weight_transpose_compresses_the_transposed_matrix(tmp_path: Path) -> None:
    roots = export(Compressor(CompressConfig(), weight=WEIGHT), tmp_path, weight_transpose=True)
    verify({key: np.asarray(value).T for key, value in WEIGHT.items()}, read_dat(*roots))


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70)), st.booleans())
def test_any_matrix_survives(
    tmp_path_factory: pytest.TempPathFactory, matrix: np.ndarray[Any, np.dtype[np.int8]], disabled: bool
) -> None:
    config = CompressConfig(compress_disable_layers=["a"] if disabled else None)
    roots = export(Compressor(config, weight={"a": matrix}), tmp_path_factory.getbasetemp() / "any")
    verify({"a": matrix}, read_dat(*roots))


@pytest.mark.parametrize("disabled", [(), (f"{NAMES[0]}.weight",), tuple(f"{name}.weight" for name in NAMES)])
def test_safetensors_restore_equal_matrices(tmp_path: Path, disabled: tuple[str, ...]) -> None:
    config = CompressConfig(compress_disable_layers=disabled)
    compressor = Compressor(config, weight=MODEL, quant_model_description=DESCRIPTION)
    compressor.run()
    for _ in range(2):
        compressor.export_safetensors(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o750
    modes = {file.name: mode(file) for file in (tmp_path / "new").iterdir()}
    assert modes == {
        "quant_model_weight_w8a8sc.safetensors": 0o400,
        "quant_model_description_w8a8sc.json": 0o600,
    }
    restored = read_safetensors(tmp_path / "new")
    verify(matrices(MODEL, DESCRIPTION), restored)
    assert restored.keys() == {f"{name}.weight" for name in NAMES}

    stored = load_file(tmp_path / "new" / "quant_model_weight_w8a8sc.safetensors")
    description = json.loads((tmp_path / "new" / "quant_model_description_w8a8sc.json").read_text())
    assert description.pop("container") == {"name": "slimrun-nz", "version": 1}
    assert (description.pop("model_quant_type"), description.pop("version")) == ("W8A8SC", "1.0.0")
    assert description.keys() == stored.keys()
    for name in NAMES:
        assert {description[f"{name}.{part}"] for part in ROOTS} == {"W8A8SC"}
        assert stored[f"{name}.info"].dtype == torch.int64
        assert stored[f"{name}.weight"].ndim == (4 if f"{name}.weight" in disabled else 1)
    for key, value in MODEL.items():
        if key.removesuffix(".weight") not in NAMES:
            assert description[key] == DESCRIPTION[key]
            same = torch.from_numpy(value.astype("=f4")) if isinstance(value, np.ndarray) else value
            assert torch.equal(stored[key], same)


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

    monkeypatch.setattr("ops.msmodelslim.files.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        compressor.export_safetensors(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_pseudo_sparsity_comes_from_the_seed_alone(tmp_path: Path) -> None:
    def run(weight: dict[str, npy.Entry], **keywords: Any) -> dict[str, Any]:
        config = CompressConfig(do_pseudo_sparse=True, **keywords)
        return dict(read_dat(*export(Compressor(config, weight=weight), tmp_path)))

    half = run(WEIGHT, sparse_ratio=0.5, compress_disable_layers=["layers.0.k_proj"])
    large, found = np.asarray(WEIGHT["layers.1.large"]), half["layers.1.large"]
    kept = found[large != 0] != 0
    assert abs(kept.mean() - 0.5) < 0.01
    assert ((found == large) | (found == 0)).all()
    verify({"k": WEIGHT["layers.0.k_proj"]}, {"k": half["layers.0.k_proj"]})
    backwards = run(dict(reversed(WEIGHT.items())), sparse_ratio=0.5)
    assert np.array_equal(backwards["layers.1.large"], found)
    assert not np.array_equal(run(WEIGHT, sparse_ratio=0.5, seed=1)["layers.1.large"], found)
    verify(WEIGHT, run(WEIGHT, sparse_ratio=1))
    assert not any(matrix.any() for matrix in run(WEIGHT, sparse_ratio=0).values())


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
    assert not said.out


def test_more_threads_than_cores_become_one(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    used = []

    def codec(threads: int) -> NZ:
        used.append(threads)
        return NZ()

    monkeypatch.setattr(compression, "NZ", codec)
    with caplog.at_level(logging.INFO):
        Compressor(CompressConfig(multiprocess_num=5), weight=WEIGHT).run()
        Compressor(CompressConfig(multiprocess_num=4), weight=WEIGHT).run()
    assert used == [1, 4]
    assert caplog.messages == ["multiprocess_num=5 is more than the 4 cores of this machine: 1 is used"]


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"do_pseudo_sparse": "x"}, TypeError, "do_pseudo_sparse must be bool, not str."),
        (
            {"do_pseudo_sparse": True, "sparse_ratio": 2},
            ValueError,
            "sparse_ratio is invalid, expected an value in [0, 1], but got 2",
        ),
        (
            {"do_pseudo_sparse": True, "sparse_ratio": float("nan")},
            ValueError,
            "sparse_ratio is invalid, expected an value in [0, 1], but got nan",
        ),
        (
            {"do_pseudo_sparse": True, "sparse_ratio": "1"},
            ValueError,
            "sparse_ratio is invalid, expected an value in [0, 1], but got 1",
        ),
        ({"is_debug": 1}, TypeError, "is_debug must be bool, not int."),
        ({"compress_disable_layers": "a"}, TypeError, "compress_disable_layers must be tuple or list, not str."),
        ({"compress_disable_layers": [1]}, TypeError, "Element in compress_disable_layers must be str, not int."),
        ({"record_detail_root": 1}, ValueError, "record_detail_root is invalid, expected a string, but got 1"),
        ({"multiprocess_num": 0}, ValueError, "multiprocess_num is invalid, expected an int (>=1), but got 0"),
        ({"multiprocess_num": 1.0}, ValueError, "multiprocess_num is invalid, expected an int (>=1), but got 1.0"),
        ({"multiprocess_num": True}, ValueError, "multiprocess_num is invalid, expected an int (>=1), but got True"),
        ({"seed": -1}, ValueError, "seed is invalid, expected an int (>=0), but got -1"),
        ({"confirm": "yes"}, TypeError, "confirm must be bool, not str."),
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


def test_integers_in_floats_are_cast_and_other_floats_and_vectors_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    matrix = sparse(5, 7)
    weight: dict[str, Any] = {
        "float32": matrix.astype(np.float32),
        "float16": torch.from_numpy(matrix).half(),
        "bfloat16": torch.from_numpy(matrix).bfloat16(),
        "extremes": np.array([[-128.0, 127.0]]),
        "head": np.full((2, 2), 0.5, np.float32),
        "beyond": np.array([[128.0]]),
        "nan": np.array([[np.nan]]),
        "bias": np.zeros(3, np.int32),
        "scale": torch.ones(3),
        "offset": torch.tensor(0.0),
        "kernel": torch.ones(2, 2, 2),
    }
    roots = export(Compressor(CompressConfig(), weight=weight), tmp_path)
    restored = read_dat(*roots)
    assert sorted(restored) == ["bfloat16", "extremes", "float16", "float32"]
    verify({key: weight[key] for key in restored}, restored)
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [
        "not compressed, since they are no int8 matrices: head, beyond, nan, bias, scale, offset, kernel"
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 2), np.int32), r"x is int32 with shape \(2, 2\), expected an int8 matrix"),
        (np.zeros((2, 2), np.uint8), r"x is uint8 with shape \(2, 2\)"),
        (np.zeros((2, 2, 2), np.int8), r"x is int8 with shape \(2, 2, 2\)"),
        (torch.zeros(2, 2, dtype=torch.bool), r"x is bool with shape \(2, 2\)"),
        (np.zeros((0, 4), np.int8), r"x is int8 with shape \(0, 4\)"),
        (np.array(["a"]), r"x is <U1 with shape \(1,\)"),
        (np.array([None]), r"x is object with shape \(1,\)"),
        ("text", "x is str, expected an int8 matrix"),
        ([[1]], "x is list, expected an int8 matrix"),
    ],
)
def test_what_is_no_matrix_is_an_error_with_its_key(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Compressor(CompressConfig(), weight={**WEIGHT, "x": value}).run()


def test_nothing_to_compress_and_a_key_that_is_no_text() -> None:
    with pytest.raises(ValueError, match="no int8 matrix to compress among the 1 entries"):
        Compressor(CompressConfig(), weight={"a": torch.ones(3)}).run()
    with pytest.raises(ValueError, match="no int8 matrix to compress among the 0 entries"):
        Compressor(CompressConfig(), weight={}).run()
    with pytest.raises(TypeError, match="key of weight must be str, not int"):
        Compressor(CompressConfig(), weight={1: sparse(2, 2)}).run()  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="weight_transpose must be bool, not int"):
        Compressor(CompressConfig(), weight=WEIGHT).run(1)  # type: ignore[arg-type]


def test_a_disabled_layer_that_is_not_there_is_named_with_what_comes_near() -> None:
    config = CompressConfig(compress_disable_layers=["layers.0.q_porj"])
    with pytest.raises(ValueError, match=r"invalid key `layers.0.q_porj`; near it: layers\.0\.q_proj"):
        Compressor(config, weight=WEIGHT).run()


@pytest.mark.parametrize("kind", ["W8A8S", "W8A8", "W8A8_DYNAMIC", "W8A16"])
def test_a_description_says_which_weights(kind: str) -> None:
    description = {"a.weight": kind, "b.weight": "FLOAT", "norm.weight": kind, "a.deq_scale": kind}
    weight: dict[str, npy.Entry] = {
        "a.weight": sparse(3, 3),
        "b.weight": sparse(4, 4),
        "norm.weight": sparse(5, 5),
        "a.deq_scale": torch.arange(3),
    }
    assert list(Compressor(CompressConfig(), weight=weight, quant_model_description=description).run()[0]) == [
        "a.weight"
    ]


def test_a_description_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"a\.weight has the type W16A16S, which is not built"):
        matrices({"a.weight": sparse(2, 2)}, {"a.weight": "W16A16S"})
    with pytest.raises(ValueError, match=r"quant_model_description names b\.weight, which weight lacks"):
        matrices({"a.weight": sparse(2, 2)}, {"a.weight": "W8A8S", "b.weight": "W8A8S"})


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


KEY = "layers.1.large.dat"


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("left", [None, 0, 1, -1, -8])
def test_a_missing_or_truncated_file_is_named(tmp_path: Path, root: str, left: int | None) -> None:
    roots = export(Compressor(CompressConfig(), weight=WEIGHT), tmp_path)
    path = tmp_path / root / KEY
    content = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(content[:left])
    if (root, left) == ("weight", None):  # nothing says that it was there
        assert KEY.removesuffix(".dat") not in read_dat(*roots)
        return
    with pytest.raises(ValueError, match=KEY):
        read_dat(*roots)


def test_a_damaged_byte_is_noticed(tmp_path: Path) -> None:
    roots = export(Compressor(CompressConfig(), weight={"a": sparse(70, 70)}), tmp_path)
    for root in roots:
        path = root / "a.dat"
        content = path.read_bytes()
        path.chmod(0o600)
        for position in range(0, len(content), 97 if root.name == "weight" else 1):
            path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            with pytest.raises(ValueError, match=r"a\.dat|a differs: shape"):  # info may name a larger matrix
                verify({"a": sparse(70, 70)}, read_dat(*roots))
        path.write_bytes(content)
    verify({"a": sparse(70, 70)}, read_dat(*roots))


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.dat file"):
        read_dat(tmp_path, tmp_path, tmp_path)
    with pytest.raises(ValueError, match="is no bundle"):
        read_safetensors(tmp_path)


def test_verify_names_the_first_key_that_differs() -> None:
    original: dict[str, npy.Entry] = {"a": sparse(3, 4), "b": torch.from_numpy(sparse(3, 4)).float()}
    good = {key: np.array(sparse(3, 4)) for key in original}
    verify(original, dict(reversed(good.items())))
    changed = good["b"].copy()
    changed[1, 2] ^= 1
    with pytest.raises(ValueError, match=r"^b differs in 1 of 12 elements"):
        verify(original, {**good, "b": changed})
    with pytest.raises(ValueError, match=r"^b differs: shape \(3, 4\) became \(4, 3\)"):
        verify(original, {**good, "b": changed.T})
    with pytest.raises(ValueError, match=r"^b is missing in what was restored"):
        verify(original, {"a": good["a"]})
    with pytest.raises(ValueError, match=r"^c is missing in what was compressed"):
        verify(original, {**good, "c": changed})


def test_the_module_does_without_transformers() -> None:
    script = "import sys, ops.msmodelslim.weight_compression as w; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
