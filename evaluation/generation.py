"""Answers of a model to many prompts, in batches of one shape. Shared by the tasks that score generated text."""

from collections.abc import Sequence

import numpy as np

from evaluation.base import SAMPLES, LanguageModel, Outputs, Progress, batches


def answers(
    model: LanguageModel, prompts: Sequence[str], batch: int, max_new_tokens: int, progress: Progress
) -> list[str]:
    """Greedy answers, stripped, in the order of the prompts.

    Raises ValueError when a prompt with its answer does not fit into the model's context: cutting it silently
    would score an answer to another question.
    """
    encoded = [model.encode_prompt(prompt) for prompt in prompts]
    longest = max(map(len, encoded))
    if longest + max_new_tokens > model.context:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} is out of range; allowed: 1 to {model.context - longest}, "
            f"the model's context of {model.context} less the longest prompt"
        )
    texts: list[str] = []
    for group, count in batches(encoded, batch):
        texts += [model.decode(ids).strip() for ids in model.generate(group, max_new_tokens)[:count]]
        progress(len(texts), len(prompts))
    return texts


def as_outputs(texts: Sequence[str]) -> Outputs:
    """Text as an array that numpy saves without pickle."""
    return {"texts": np.array(texts, dtype=np.str_)}


def examples(
    inputs: Sequence[str], references: Sequence[str], was: Sequence[str], now: Sequence[str]
) -> list[dict[str, str]]:
    """A few items for a person to read, those with a changed answer first."""
    order = sorted(range(len(inputs)), key=lambda i: was[i] == now[i])
    return [
        {"input": inputs[i], "reference": references[i], "float": was[i], "quantized": now[i]} for i in order[:SAMPLES]
    ]
