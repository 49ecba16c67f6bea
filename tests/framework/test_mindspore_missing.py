"""What a user is told where MindSpore cannot run."""

from __future__ import annotations

import importlib.util
import types

import pytest

from slimrun.ops.errors import Unavailable
from slimrun.ops.framework import mindspore


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"needs the package mindspore: pip install 'slimrun\[mindspore\]'"):
        mindspore.require()


def test_beside_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(mindspore, "np", types.SimpleNamespace(__version__="2.4.6"))
    with pytest.raises(Unavailable, match=r"MindSpore crashes with numpy 2\.4\.6; install .*numpy>=1\.26,<2"):
        mindspore.require()
