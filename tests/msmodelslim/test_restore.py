"""Equal matrices come back from both kinds of files, and no damage goes unnoticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file

from slimrun.msmodelslim import npy
from slimrun.msmodelslim.matrices import matrices
from slimrun.msmodelslim.restore import read_dat, read_safetensors, verify
from slimrun.msmodelslim.weight_compression import CompressConfig, Compressor

from .weights import DESCRIPTION, MODEL, NAMES, ROOTS, WEIGHT, export, mode, sparse


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


def test_weight_transpose_compresses_the_transposed_matrix(tmp_path: Path) -> None:
    roots = export(Compressor(CompressConfig(), weight=WEIGHT), tmp_path, weight_transpose=True)
    verify({key: np.asarray(value).T for key, value in WEIGHT.items()}, read_dat(*roots))


@settings(max_examples=25)
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
