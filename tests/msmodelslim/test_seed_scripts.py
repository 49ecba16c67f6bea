"""The scripts of the msModelSlim guide run as programs, from the model to compressed files and back.

In `tests/seed_scripts` only import lines, paths, the device, the model-loading line and disable_names differ from the
guide's text.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slimrun.msmodelslim import npy
from slimrun.msmodelslim.restore import read_dat, verify
from slimrun.ops.model import embedded

from ..conftest import cache_folder
from ..framework import folders

SCRIPTS = Path(__file__).parents[1] / "seed_scripts"


def run(script: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("model", "linears"), [("chatglm2", 5), pytest.param("smollm2", 207, marks=pytest.mark.real)])
def test_the_guides_scripts(model: str, linears: int, tmp_path: Path) -> None:
    if model == "smollm2":
        (tmp_path / model).symlink_to(embedded.fetched(cache_folder()))
    else:
        folders.chatglm2(tmp_path / model)
    said = run(f"sparse_quant_{model}.py", tmp_path)
    assert "Save quant weight success!" in said
    assert "pr=2.0 has no effect" in said
    said = run("compress.py", tmp_path)
    assert "deserialize" in said

    weights = npy.load(tmp_path / "quant_weight" / "quant_weight.npy")
    assert len(weights) == linears
    compressed = tmp_path / "compress"
    restored = read_dat(compressed / "weight", compressed / "index", compressed / "info")
    verify(weights, restored)
    assert all(np.array_equal(restored[name], weights[name].numpy()) for name in weights)
    packed = sum(path.stat().st_size for path in compressed.rglob("*.dat"))
    raw = sum(weight.numel() for weight in weights.values())
    assert packed < (0.45 if model == "smollm2" else 1.2) * raw  # a tile entry costs a tiny matrix more
