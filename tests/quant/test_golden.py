"""The saved tensors of one linear against the golden table of the formulas (golden/make_golden.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from slimrun.msmodelslim.pytorch import Calibrator, QuantConfig
from slimrun.ops.model import embedded

from ..conftest import cache_folder
from .golden import make_golden
from .golden.make_golden import DTYPES, REAL, SOURCES, batches, bias, digest, methods, name, weight

TABLE = json.loads((Path(__file__).parent / "golden" / "golden.json").read_text(encoding="utf-8"))
MODES = {"co_sparse": {"w_bit": 4, "co_sparse": True}, "lowbit": {"w_bit": 4, "is_lowbit": True}, "w8a8": {}}


def saved(source: str, dtype: str, case: dict[str, object], folder: Path) -> dict[str, np.ndarray]:
    """What the seed's QuantConfig, run() and save() leave for the linear of this case."""
    kind = getattr(torch, dtype)
    matrix = torch.from_numpy(weight(source).copy())
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], dtype=kind)
    linear.weight.data.copy_(matrix)
    linear.bias.data.copy_(torch.from_numpy(bias(source, matrix.shape[0])))
    keywords = {key: value for key, value in case.items() if key != "method"} | MODES[str(case["method"])]
    config = QuantConfig(disable_last_linear=False, act_method=1, **keywords)  # type: ignore[arg-type]
    samples = [[torch.from_numpy(x).to(kind)] for x in batches(source, matrix.shape[1])]
    calibrator = Calibrator(nn.Sequential(linear), config, samples)
    calibrator.run()
    calibrator.save(str(folder), save_type="safe_tensor", safetensors_name="w.safetensors")
    tensors = {key.removeprefix("0."): value for key, value in load_file(folder / "w.safetensors").items()}
    expected = torch.float32 if dtype == "bfloat16" else torch.int64
    assert tensors["deq_scale"].dtype == expected
    if expected == torch.int64:
        assert not (tensors["deq_scale"] >> 32).any()
        tensors["deq_scale"] = tensors["deq_scale"].to(torch.int32).view(torch.float32)
    assert tensors["input_scale"].dtype == tensors["input_offset"].dtype == tensors["bias"].dtype == kind
    for key in ("input_scale", "input_offset"):
        tensors[key] = tensors[key].float()
    return {key: value.numpy() for key, value in tensors.items() if value.dtype != torch.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "source", [pytest.param(source, marks=pytest.mark.real if source in REAL else ()) for source in SOURCES]
)
def test_saved_tensors_equal_the_formulas(source: str, dtype: str, tmp_path: Path) -> None:
    if source in REAL:
        embedded.fetched(cache_folder())
    for number, case in enumerate(methods()):
        tensors = saved(source, dtype, case, tmp_path / str(number))
        for key, expected in TABLE[name(source, dtype, case)].items():
            assert digest(tensors[key]) == expected, f"{case}: {key}"


def test_the_table_is_what_its_script_makes() -> None:
    for case in methods():
        made = {key: digest(x) for key, x in make_golden.quantized("outliers", "float16", case).items()}
        assert made == TABLE[name("outliers", "float16", case)]
