"""What an export predicts, beside how far the bundle itself moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimrun.ops.export.base import Target
from slimrun.ops.export.compressed_tensors import CompressedTensors
from slimrun.ops.export.gguf import Gguf
from slimrun.ops.export.text import check_text
from slimrun.ops.export.vllm_ascend import VllmAscend
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.quant.w8a16 import W8A16
from slimrun.runner import export

from ..conftest import TEXTS, tiny
from .bundles import write
from .test_gguf import WORDS

pytest.importorskip("compressed_tensors")


def checked(tmp_path: Path, target: Target, quantizer: Quantizer) -> dict[str, str]:
    model = tiny("float16" if isinstance(target, VllmAscend) else "float32")
    if isinstance(target, Gguf):
        model.tokenizer.backend_tokenizer.pre_tokenizer = WORDS
    write(tmp_path / "artifact", model, quantizer)
    exported = target.run(tmp_path / "artifact", tmp_path / "export")
    checks = check_text(target, tmp_path / "artifact", exported, " ".join(TEXTS))
    return {check.what: check.outcome for check in checks}


def test_an_export_with_int8_inputs_is_beside_the_spread(tmp_path: Path) -> None:
    checks = checked(tmp_path, CompressedTensors(), W8A8S())
    low, high = map(float, checks["with noise of 1e-06, 16 runs"].split(" to "))
    assert 4 < low <= high < 7
    assert low - 0.01 < float(checks["the export, in transformers"]) < high + 0.01


def test_weights_alone_predict_the_same(tmp_path: Path) -> None:
    checks = list(checked(tmp_path, CompressedTensors(), W8A16()).values())
    assert float(checks[0]) == pytest.approx(float(checks[-1]), abs=2e-4)


def test_what_nothing_runs_is_said(tmp_path: Path) -> None:
    checks = checked(tmp_path, VllmAscend(), W8A8S())
    assert checks["the export"] == "not run: nothing here runs files of vllm-ascend"
    low, high = map(float, checks["with noise of 1e-03, 16 runs"].split(" to "))
    assert low - 0.02 < float(checks["multiplying as the device does"]) < high + 0.02


def test_an_export_with_float_inputs_is_beside_ours(tmp_path: Path) -> None:
    checks = checked(tmp_path, Gguf(), W8A8S())
    assert float(checks["with float inputs"]) == pytest.approx(float(checks["the export, in transformers"]), abs=1e-3)


def test_a_file_that_is_no_text_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_bytes(b"\xff")
    arguments = [str(tmp_path), str(tmp_path / "out"), "--to", "gguf", "--verify-text", str(tmp_path / "text")]
    monkeypatch.setattr("sys.argv", ["slimrun-export", *arguments])
    with pytest.raises(SystemExit, match="2"):
        export.main()
    assert capsys.readouterr().err.startswith(f"slimrun-export: --verify-text {tmp_path}/text, line 1 is not UTF-8")
    assert not (tmp_path / "out").exists()
