"""SmolLM2 on other weights than its 4-bit file's, for `frontier.py --model`: does a method's gain rest on that grid?

    python tests/benchmarks/off_grid.py rotated FOLDER    # the same function in a random orthogonal basis
    python tests/benchmarks/off_grid.py noisy FOLDER      # each weight anywhere in its cell of Q4_1

Rotating (QuaRot: Ashkboos et al. 2024) folds the norms' weights into the linears that read them and turns the hidden
states, so that embeddings and output head are two tables afterwards. Noise gives another, worse language model, which
is then its own float baseline.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimrun.runner.config import build, composed
from tests.benchmarks.frontier import SETTINGS, load

BLOCK, LEVELS = 32, 15  # of Q4_1: numbers that share a range, and steps in it
READ, WROTE = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ("o_proj", "down_proj")


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("rotated", "noisy"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    loaded = load(build(composed(SETTINGS)))
    model: Any = loaded.module
    generator = torch.Generator().manual_seed(0)
    if options.kind == "rotated":
        rotate(model, generator)
    else:
        for layer in model.model.layers:
            for linear in layer.modules():
                if isinstance(linear, nn.Linear):
                    linear.weight.copy_(anywhere(linear.weight, generator))
    model.save_pretrained(options.folder)
    loaded.tokenizer.save_pretrained(options.folder)


def rotate(model: Any, generator: torch.Generator) -> None:
    """Turn the hidden states of a LLaMA by a random orthogonal matrix, in place."""
    width = model.config.hidden_size
    turn, triangle = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    turn *= triangle.diagonal().sign()  # which makes it uniformly distributed
    table = model.get_input_embeddings().weight.double()
    head = nn.Linear(width, len(table), bias=False)
    head.weight = nn.Parameter(((table * model.model.norm.weight.double()) @ turn).float(), requires_grad=False)
    model.set_output_embeddings(head)
    model.config.tie_word_embeddings = False
    model.get_input_embeddings().weight = nn.Parameter((table @ turn).float(), requires_grad=False)
    model.model.norm.weight.fill_(1.0)
    for layer in model.model.layers:
        norms = dict.fromkeys(READ[:3], layer.input_layernorm) | dict.fromkeys(READ[3:], layer.post_attention_layernorm)
        for name, linear in layer.named_modules():
            own = name.rpartition(".")[2]
            if own in READ:
                linear.weight.copy_((linear.weight.double() * norms[own].weight.double()) @ turn)
            elif own in WROTE:
                linear.weight.copy_(turn.T @ linear.weight.double())
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.fill_(1.0)


def anywhere(weight: Tensor, generator: torch.Generator) -> Tensor:
    """The weight [n, k], each number moved by at most half of the step that its block of Q4_1 has."""
    blocks = weight.unflatten(1, (-1, BLOCK))
    step = (blocks.amax(dim=-1, keepdim=True) - blocks.amin(dim=-1, keepdim=True)) / LEVELS
    return (blocks + (torch.rand(blocks.shape, generator=generator) - 0.5) * step).flatten(1)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
