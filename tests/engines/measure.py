"""One engine on one folder: a row of the table of `run`. vllm and llama.cpp run in environments without slimrun.

    python measure.py tokens BUNDLE FILE            # what all engines read, as JSON
    python measure.py ENGINE FOLDER FILE            # one of ENGINES

One thread each; times are the process's own CPU seconds, which other programs on the machine do not change much, and
the median of the rounds counts.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

PROMPT, ANSWER, ROUNDS = 256, 48, 3  # tokens, tokens, times

Generate = Callable[[Sequence[int], int], object]  # tokens of a prompt, how many to give, whatever they are
Engine = tuple[Generate | None, Callable[[Sequence[int]], float]]  # and nats a token of a text, after its first


def main() -> None:
    """Print the row."""
    engine, folder, file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if engine == "tokens":
        file.write_text(json.dumps(tokens(folder)), encoding="utf-8")
        return
    ids = json.loads(file.read_text(encoding="utf-8"))
    generate, loss = ENGINES[engine](folder)
    rates = "|" if generate is None else speeds(generate, ids[:PROMPT])
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf"))
    print(f"| {engine} | {size / 1e6:.1f} | {rates} | {loss(ids):.4f} |", flush=True)


def speeds(generate: Generate, ids: Sequence[int]) -> str:
    """Tokens a CPU second of the prompt, and of the answer."""
    generate(ids, 2)  # what is done once
    first = median(lambda: generate(ids, 1))
    whole = median(lambda: generate(ids, 1 + ANSWER))
    return f"{len(ids) / first:.0f} | {ANSWER / (whole - first):.1f}"


def median(work: Callable[[], object]) -> float:
    """CPU seconds that the work takes."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def tokens(folder: Path) -> list[int]:
    """The first tokens of the pinned text, as many as the nll is measured on."""
    from slimrun import load_bundle
    from slimrun.evaluation.task.perplexity import Perplexity

    ids: list[int] = load_bundle(folder).encode(Perplexity().texts()[0])[:331]
    return ids


def load_bundle(folder: Path, *, float_inputs: bool = False) -> Engine:
    """slimrun's own arithmetic; with float inputs it is slow, and tells what the weights alone predict."""
    import numpy as np

    import slimrun
    from slimrun.ops.framework.pytorch.language_model import float_products

    model: Any = slimrun.load_bundle(folder)
    model.module.generation_config.eos_token_id = model.module.config.eos_token_id = None  # no answer ends early
    model.tokenizer.eos_token = None

    def generate(ids: Sequence[int], count: int) -> None:
        model.generate([ids], count)

    def loss(ids: Sequence[int]) -> float:
        with float_products(model.module) if float_inputs else nullcontext():
            log_probs = model.log_probs(model.hidden(np.array([ids]))[0, :-1])
        return float(-log_probs[np.arange(len(ids) - 1), ids[1:]].mean())

    return None if float_inputs else generate, loss


def transformers(folder: Path) -> Engine:
    """What transformers makes of compressed-tensors: floats that emulate the integers."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)

    def generate(ids: Sequence[int], count: int) -> None:
        lengths = {"min_new_tokens": count, "max_new_tokens": count}
        model.generate(torch.tensor([ids]), do_sample=False, **lengths)

    @torch.inference_mode()
    def loss(ids: Sequence[int]) -> float:
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])))

    return generate, loss


def vllm(folder: Path) -> Engine:
    """vLLM's CPU kernels, in this process."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    model = LLM(str(folder), dtype="bfloat16", max_model_len=1024, enforce_eager=True, enable_prefix_caching=False)

    def answer(ids: Sequence[int], count: int, **more: int) -> Any:
        settings = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, **more)
        [answered] = model.generate(TokensPrompt(prompt_token_ids=list(ids)), settings, use_tqdm=False)
        return answered

    def loss(ids: Sequence[int]) -> float:
        scores = answer(ids, 1, prompt_logprobs=0).prompt_logprobs
        return -sum(choices[token].logprob for choices, token in zip(scores[1:], ids[1:])) / (len(ids) - 1)

    return answer, loss


def llama_cpp(folder: Path) -> Engine:
    """llama.cpp, through llama-cpp-python."""
    import numpy as np
    from llama_cpp import Llama

    [file] = folder.glob("*.gguf")
    settings = {"n_ctx": 1024, "n_batch": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    model = Llama(str(file), **settings)

    def generate(ids: Sequence[int], count: int) -> None:
        model.reset()  # or it would keep what it knows of the prompt
        for number, _ in enumerate(model.generate(ids, temp=0.0, reset=False), start=1):
            if number == count:
                return

    def loss(ids: Sequence[int]) -> float:
        scored = Llama(str(file), logits_all=True, **settings)
        scored.eval(ids)
        logits = np.array(scored.scores[: len(ids) - 1], dtype=np.float64)
        peaks = logits.max(axis=1)
        log_sums = peaks + np.log(np.exp(logits - peaks[:, None]).sum(axis=1))
        return float((log_sums - logits[np.arange(len(ids) - 1), ids[1:]]).mean())

    return generate, loss


ENGINES: dict[str, Callable[[Path], Engine]] = {
    "load_bundle": load_bundle,
    "load_bundle, float inputs": partial(load_bundle, float_inputs=True),
    "transformers": transformers,
    "vllm": vllm,
    "llama.cpp": llama_cpp,
}

if __name__ == "__main__":
    main()
