"""Which entries of the weights are compressed, as which matrices, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimrun.msmodelslim import npy
from slimrun.msmodelslim.matrices import matrices
from slimrun.msmodelslim.restore import read_dat, verify
from slimrun.msmodelslim.weight_compression import CompressConfig, Compressor

from .weights import WEIGHT, export, sparse


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


def test_pseudo_sparsity_comes_from_the_seed_alone(tmp_path: Path) -> None:
    def run(weight: dict[str, npy.Entry], **keywords: Any) -> dict[str, Any]:
        config = CompressConfig(do_pseudo_sparse=True, **keywords)
        return dict(read_dat(*export(Compressor(config, weight=weight), tmp_path)))

    half = run(WEIGHT, sparse_ratio=0.5, compress_disable_layers=["layers.0.k_proj"])
    large, thinned = np.asarray(WEIGHT["layers.1.large"]), half["layers.1.large"]
    kept = thinned[large != 0] != 0
    assert abs(kept.mean() - 0.5) < 0.01
    assert ((thinned == large) | (thinned == 0)).all()
    verify({"k": WEIGHT["layers.0.k_proj"]}, {"k": half["layers.0.k_proj"]})
    backwards = run(dict(reversed(WEIGHT.items())), sparse_ratio=0.5)
    assert np.array_equal(backwards["layers.1.large"], thinned)
    assert not np.array_equal(run(WEIGHT, sparse_ratio=0.5, seed=1)["layers.1.large"], thinned)
    verify(WEIGHT, run(WEIGHT, sparse_ratio=1))
    assert not any(matrix.any() for matrix in run(WEIGHT, sparse_ratio=0).values())
