"""One engine on one folder: a row of the table of `run`. vllm and llama.cpp run in environments without slimrun.

    python measure.py tokens BUNDLE FILE            # what all engines read, as JSON
    python measure.py ENGINE FOLDER FILE            # one of ENGINES
    python measure.py spread BUNDLE FILE            # no row: how far the bundle's own nll moves

One thread each; times are the process's own CPU seconds, which other programs on the machine do not change much, and
the median of the rounds counts.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

PROMPT, ANSWER, ROUNDS = 256, 48, 3  # tokens, tokens, times
RUNS = 16  # with noise
BFLOAT16 = 2.0**-8  # the most that rounding to it changes a number by, as a share

Generate = Callable[[Sequence[int], int], object]  # tokens of a prompt, how many to give, whatever they are
Engine = tuple[Generate | None, Callable[[Sequence[int]], float]]  # and nats a token of a text, after its first


def main() -> None:
    """Print the row."""
    engine, folder, file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if engine == "tokens":
        file.write_text(json.dumps(tokens(folder)), encoding="utf-8")
        return
    ids = json.loads(file.read_text(encoding="utf-8"))
    if engine == "spread":
        for size in (1e-6, BFLOAT16):
            noise = f"noise of {size:.1g} on what the embeddings give"
            print(f"load_bundle, {noise}, {spread(folder, ids, size)}", flush=True)
        return
    generate, loss = ENGINES[engine](folder)
    rates = "|" if generate is None else speeds(generate, ids[:PROMPT])
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf"))
    print(f"| {engine} | {size / 1e6:.1f} | {rates} | {loss(ids):.5f} |", flush=True)


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


def spread(folder: Path, ids: Sequence[int], size: float) -> str:
    """Least and most nats a token of runs whose embeddings are multiplied by 1 + noise of that size."""
    import slimrun
    from slimrun.ops.framework.pytorch.noise import noisy

    model: Any = slimrun.load_bundle(folder)
    losses = []
    for seed in range(RUNS):
        with noisy(model.module, seed, size):
            losses.append(nats(model, ids))
    return f"{RUNS} runs: nll {min(losses):.5f} to {max(losses):.5f}"


def nats(model: Any, ids: Sequence[int]) -> float:
    """Nats a token of the text, after its first, by a loaded bundle."""
    import numpy as np

    log_probs = model.log_probs(model.hidden(np.array([ids]))[0, :-1])
    return float(-log_probs[np.arange(len(ids) - 1), ids[1:]].mean(dtype=np.float64))


def load_bundle(folder: Path, *, float_inputs: bool = False) -> Engine:
    """slimrun's own arithmetic; with float inputs it is slow, and tells what the weights alone predict."""
    import slimrun
    from slimrun.ops.framework.pytorch.language_model import float_products

    model: Any = slimrun.load_bundle(folder)
    model.module.generation_config.eos_token_id = model.module.config.eos_token_id = None  # no answer ends early
    model.tokenizer.eos_token = None

    def generate(ids: Sequence[int], count: int) -> None:
        model.generate([ids], count)

    def loss(ids: Sequence[int]) -> float:
        with float_products(model.module) if float_inputs else nullcontext():
            return nats(model, ids)

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


def vllm(folder: Path, *, dtype: str = "bfloat16") -> Engine:
    """vLLM's CPU kernels, in this process; what is no int8 product is computed in `dtype`."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    model = LLM(str(folder), dtype=dtype, max_model_len=1024, enforce_eager=True, enable_prefix_caching=False)

    def answer(ids: Sequence[int], count: int, **more: int) -> Any:
        settings = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, **more)
        [answered] = model.generate(TokensPrompt(prompt_token_ids=list(ids)), settings, use_tqdm=False)
        return answered

    def loss(ids: Sequence[int]) -> float:
        scores = answer(ids, 1, prompt_logprobs=0).prompt_logprobs
        return -sum(choices[token].logprob for choices, token in zip(scores[1:], ids[1:])) / (len(ids) - 1)

    return answer, loss


def llama_cpp(folder: Path) -> Engine:
    """llama.cpp, through llama-cpp-python: its kernels of Q8_0 round inputs to 8 bits, a step a block of 32."""
    from llama_cpp import Llama

    [file] = folder.glob("*.gguf")
    model = Llama(str(file), **LLAMA)

    def generate(ids: Sequence[int], count: int) -> None:
        model.reset()  # or it would keep what it knows of the prompt
        for number, _ in enumerate(model.generate(ids, temp=0.0, reset=False), start=1):
            if number == count:
                return

    return generate, lambda ids: llama_loss(Llama(str(file), logits_all=True, **LLAMA), ids)


def llama_cpp_float(folder: Path) -> Engine:
    """The same file with float inputs: llama.cpp itself writes integers * steps as float32, and multiplies those.

    Keys and values are cached in float32 too. Nobody serves that: it tells what the file's weights predict.
    """
    import llama_cpp as library

    [file] = folder.glob("*.gguf")

    def loss(ids: Sequence[int]) -> float:
        wanted = library.llama_model_quantize_default_params()
        wanted.ftype, wanted.allow_requantize = library.LLAMA_FTYPE_ALL_F32, True
        with tempfile.TemporaryDirectory() as place:
            floats = f"{place}/float32.gguf"
            if library.llama_model_quantize(str(file).encode(), floats.encode(), ctypes.byref(wanted)):
                sys.exit(f"llama.cpp cannot write {file} as float32")
            kinds = {"type_k": library.GGML_TYPE_F32, "type_v": library.GGML_TYPE_F32}
            return llama_loss(library.Llama(floats, logits_all=True, **kinds, **LLAMA), ids)

    return None, loss


def llama_loss(model: Any, ids: Sequence[int]) -> float:
    """Nats a token of the text, after its first, by a llama.cpp that keeps all logits."""
    import numpy as np

    model.eval(ids)
    logits = np.array(model.scores[: len(ids) - 1], dtype=np.float64)
    peaks = logits.max(axis=1)
    log_sums = peaks + np.log(np.exp(logits - peaks[:, None]).sum(axis=1))
    return float((log_sums - logits[np.arange(len(ids) - 1), ids[1:]]).mean())


LLAMA: dict[str, Any] = {"n_ctx": 1024, "n_batch": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
ENGINES: dict[str, Callable[[Path], Engine]] = {
    "load_bundle": load_bundle,
    "load_bundle, float inputs": partial(load_bundle, float_inputs=True),
    "transformers": transformers,
    "vllm": vllm,
    "vllm, float32": partial(vllm, dtype="float32"),
    "llama.cpp": llama_cpp,
    "llama.cpp, float inputs": llama_cpp_float,
}

if __name__ == "__main__":
    main()
