"""How well an export predicts a text where something here runs it, beside how far the bundle itself moves.

With static int8 inputs a model is chaotic: a change of 1e-6 moves its predictions. So an export is held against the
spread of the bundle's own runs with noise that small, and one whose inputs are float against the bundle's with float
inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slimrun.ops.errors import first_line
from slimrun.ops.format.arithmetic import reciprocal
from slimrun.ops.format.linear import Int8Linear
from slimrun.ops.framework.base import Device

from .base import Exported, Target
from .checks import Check
from .source import DTYPES

if TYPE_CHECKING:
    from slimrun.ops.framework.pytorch import TorchModel

TOKENS = 512  # of the text, at most
RUNS = 16  # with noise: of four the spread is too narrow to tell


def check_text(target: Target, artifact: Path, exported: Exported, text: str) -> list[Check]:
    """Nats a token of the text, after its first: the bundle's, those of its runs with noise, and the export's.

    ValueError when the text has fewer than two tokens.
    """
    from slimrun.ops.framework.pytorch import PyTorch, TorchModel
    from slimrun.ops.framework.pytorch.language_model import float_products
    from slimrun.ops.framework.pytorch.noise import noise_of

    ours = PyTorch().restore(artifact, Device("cpu", "cpu"))
    tokens = ours.encode(text)[: min(TOKENS, ours.context)]
    if len(tokens) < 2:
        raise ValueError("the text has fewer than two tokens; give a longer one")
    what = f"of {len(tokens)} tokens, nats a token"
    checks = [Check(f"the bundle {what}", f"{loss(ours, tokens):.4f}")]
    if target.float_inputs:
        with float_products(ours.module):
            checks.append(Check("with float inputs", f"{loss(ours, tokens):.4f}"))
    else:
        runs = [_disturbed(ours, tokens, seed) for seed in range(RUNS)]
        noise = f"{noise_of(ours.module.dtype):.0e}"
        checks.append(Check(f"with noise of {noise}, {RUNS} runs", f"{min(runs):.4f} to {max(runs):.4f}"))
    if target.multiplies:
        with _multiplying(ours.module, DTYPES.get(target.dtype, ours.module.dtype)):
            checks.append(Check("multiplying as the device does", f"{loss(ours, tokens):.4f}"))
    tokenizer = ours.tokenizer
    del ours  # two models at once are one too many
    try:
        module = target.load(exported.folder)
    except ImportError as error:
        return [*checks, Check("the export", f"not run: {first_line(error)}")]
    if module is None:
        return [*checks, Check("the export", f"not run: nothing here runs files of {target.name}")]
    theirs = TorchModel(module, tokenizer, target.name, "export")
    return [*checks, Check("the export, in transformers", f"{loss(theirs, tokens):.4f}")]


def loss(model: TorchModel, tokens: list[int]) -> float:
    """Mean negative log-probability of the tokens after the first."""
    log_probs = model.log_probs(model.hidden(np.array([tokens]))[0, :-1])
    return float(-log_probs[np.arange(len(tokens) - 1), tokens[1:]].mean(dtype=np.float64))


def _disturbed(model: TorchModel, tokens: list[int], seed: int) -> float:
    from slimrun.ops.framework.pytorch.noise import noisy

    with noisy(model.module, seed):
        return loss(model, tokens)


@contextmanager
def _multiplying(module: Any, dtype: torch.dtype) -> Iterator[None]:
    """Meanwhile static grids have the step that a product with their rounded reciprocal stands for."""
    linears = [child for child in module.modules() if isinstance(child, Int8Linear)]
    grids = [linear.grid for linear in linears]
    for linear, grid in zip(linears, grids):
        linear.grid = replace(grid, scale=1 / float(reciprocal(torch.tensor(grid.scale).to(dtype))))
    try:
        yield
    finally:
        for linear, grid in zip(linears, grids):
            linear.grid = grid
