"""Float32 against the quantized bundle's arithmetic on SmolLM2: scoring and generation, interleaved, medians.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/inference.py [--rounds 7] [--json FILE]

Prints ratios of one run; bfloat16 stands beside as the other way to be faster. Never asserts a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from slimrun.evaluation.metric.fidelity import token_log_probs
from slimrun.evaluation.source.file import read_prompts
from slimrun.evaluation.source.pinned import pinned
from slimrun.ops.framework.base import Device
from slimrun.ops.framework.pytorch import PyTorch, TorchModel
from slimrun.ops.model import embedded
from slimrun.ops.model.pretrained import Pretrained
from slimrun.ops.quant.w8a8s import W8A8S

WINDOW, NEW_TOKENS = 512, 24
CPU = Device("cpu", "cpu")


def models(texts: list[str]) -> dict[str, TorchModel]:
    cache = Path(os.environ.get("SLIMRUN_CACHE", "~/.cache/slimrun")).expanduser()
    folder = str(embedded.fetched(cache))
    framework = PyTorch()
    load = lambda dtype: framework.load(Pretrained("smollm2", folder, dtype=dtype).open(cache), CPU)  # noqa: E731
    loaded = {"float32": load("float32"), "bfloat16": load("bfloat16"), "w8a8s": load("float32")}
    framework.calibrator(loaded["w8a8s"], W8A8S(), texts[:4], WINDOW).run()
    return loaded


def works(texts: list[str], model: TorchModel) -> dict[str, tuple[int, Callable[[], object]]]:
    """name -> (tokens, what to time) for one model."""
    ids = np.array([model.encode(texts[0])[:WINDOW]])
    prompts = [model.encode_prompt(f"Write about {text[:60]}") for text in texts[:20]]
    stop = model.module.generation_config
    stop.eos_token_id = None  # every model produces the same number of tokens
    model.tokenizer.eos_token = None
    model.module.config.eos_token_id = None
    return {
        "decoder, 512 tokens": (WINDOW, lambda: model.hidden(ids)),
        "scoring, 512 tokens": (WINDOW, lambda: token_log_probs(ids[0], model.hidden(ids)[0], model.log_probs)),
        "generation, batch 1": (NEW_TOKENS, lambda: model.generate(prompts[:1], NEW_TOKENS)),
        "generation, batch 20": (20 * NEW_TOKENS, lambda: model.generate(prompts, NEW_TOKENS)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    texts = read_prompts(pinned("wikipedia_calibration"))
    todo = {name: works(texts, model) for name, model in models(texts).items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for round_number in range(arguments.rounds + 1):
        for work in next(iter(todo.values())):
            for name in todo:
                start = time.perf_counter()
                todo[name][work][1]()
                if round_number:  # the first round warms up
                    seconds.setdefault((name, work), []).append(time.perf_counter() - start)
    table = {}
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}")
    print(f"{'':24}{'float32 tok/s':>15}{'w8a8s tok/s':>15}{'w8a8s/float32':>15}{'bf16/float32':>15}")
    for work, (tokens, _) in todo["float32"].items():
        speed = {name: tokens / statistics.median(seconds[name, work]) for name in todo}
        ratios = {name: speed[name] / speed["float32"] for name in todo}
        table[work] = {"tokens_per_s": speed, "ratio_to_float32": ratios}
        print(
            f"{work:24}{speed['float32']:15.1f}{speed['w8a8s']:15.1f}{ratios['w8a8s']:15.2f}{ratios['bfloat16']:15.2f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
