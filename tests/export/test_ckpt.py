"""ckpt: the bundle that a run with framework.weights=ckpt leaves."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from slimrun.ops import bundle, load_bundle
from slimrun.ops.export.ckpt import Ckpt
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.weights.protobuf import CkptFile

from .bundles import written


@pytest.mark.mindspore
@pytest.mark.usefixtures("with_mindspore")
def test_the_bundle_is_the_same_with_another_weight_file(tmp_path: Path) -> None:
    model = written(tmp_path / "artifact", W8A8S())
    folder = Ckpt().run(tmp_path / "artifact", tmp_path / "export").folder
    first, second = (bundle.read(place).tensors for place in (tmp_path / "artifact", folder))
    assert first.keys() == second.keys()
    assert all(first[key].equal(second[key]) for key in first)
    assert json.loads((folder / "slimrun.json").read_text())["weights"] == "quant_model_weight_w8a8sc.ckpt"
    assert load_bundle(folder).logits_checksum() == model.logits_checksum()
    with pytest.raises(ValueError, match=r"is a \.ckpt file already"):
        Ckpt().run(folder, tmp_path / "again")


@pytest.mark.mindspore
@pytest.mark.usefixtures("with_mindspore")
def test_one_bit_of_any_tensor_is_noticed(tmp_path: Path) -> None:
    written(tmp_path / "artifact", W8A8S())
    folder = Ckpt().run(tmp_path / "artifact", tmp_path / "export").folder
    [file] = folder.glob("*.ckpt")
    file.chmod(0o600)
    whole = file.read_bytes()
    entries = CkptFile(file)._entries
    assert len(entries) > 50
    for name, entry in entries.items():
        begin, end = entry.spans[0]
        damaged = bytearray(whole)
        damaged[(begin + end - 1) // 2] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{file.name}: {name} is not what was written"):
            bundle.read(folder)


def test_without_mindspore_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    written(tmp_path / "artifact", W8A8S())
    with pytest.raises(ValueError, match=r"ckpt is written by MindSpore; .*pip install 'slimrun\[mindspore\]'$"):
        Ckpt().run(tmp_path / "artifact", tmp_path / "export")
