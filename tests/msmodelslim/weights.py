"""Weights of every kind that can be compressed, and a model around them with its description."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slimrun.msmodelslim import npy
from slimrun.msmodelslim.weight_compression import Compressor

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
