"""How much a job reads and writes: its tasks, given a model that counts instead of computing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slimrun.evaluation.base import FloatArray, IntArray, Prefixed, Reader, Task

BYTES = 3  # of a token


@dataclass
class Work:
    """Tokens that a model reads at once, and steps that it writes, each for so many prompts."""

    read: list[int] = field(default_factory=list)  # tokens of each forward pass
    written: list[int] = field(default_factory=list)  # prompts of each step


class Guess:
    """Reads text without a tokenizer: a token is about three bytes of it."""

    def __init__(self, config: Any) -> None:
        self.tokenizer = range(int(getattr(config, "vocab_size", 0) or 1))
        self.context = int(getattr(config, "max_position_embeddings", 0) or 2**20)
        self.prompt_date = ""
        self.opening: list[int] = []

    def encode(self, text: str) -> list[int]:
        """As many zeros as there may be tokens."""
        return [0] * (len(text.encode()) // BYTES + 1)

    def encode_prompt(self, text: str, system: str = "") -> list[int]:
        """As many zeros as turn and system prompt may have tokens."""
        return self.encode(system + text)


class Counting:
    """A `slimrun.evaluation.base.LanguageModel` that predicts nothing; it reads text as the real one does."""

    def __init__(self, reader: Reader, vocabulary: int) -> None:
        self.work = Work()
        self.vocabulary = vocabulary
        self.context, self.prompt_date, self.opening = reader.context, reader.prompt_date, reader.opening
        self.encode, self.encode_prompt = reader.encode, reader.encode_prompt

    def decode(self, ids: Sequence[int]) -> str:
        """No text."""
        return ""

    def hidden(self, ids: IntArray) -> FloatArray:
        """[B, T] -> zeros [B, T, 1]."""
        self.work.read.append(ids.size)
        return np.zeros((*ids.shape, 1), np.float32)

    def hiddens(self, batches: Sequence[IntArray]) -> Iterator[FloatArray]:
        """Zeros for each batch."""
        return map(self.hidden, batches)

    def disturbed(self) -> AbstractContextManager[bool]:
        """There is nothing to disturb."""
        return nullcontext(False)

    def log_probs(self, hidden: FloatArray) -> FloatArray:
        """[N, 1] -> zeros [N, V], which take no memory."""
        return np.broadcast_to(np.float32(0), (len(hidden), self.vocabulary))

    def head_rows(self) -> None:
        """None that are known."""

    def continuations(self, prefix: Sequence[int], options: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Zeros for each token of each option."""
        self.work.read.append(len(prefix) + sum(map(len, options)))
        return [np.zeros(len(option), np.float32) for option in options]

    def all_continuations(self, questions: Sequence[Prefixed]) -> Iterator[list[FloatArray]]:
        """The same of each."""
        return (self.continuations(*question) for question in questions)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Answers without a token, counted as if each were as long as may be."""
        self.work.read.append(sum(map(len, prompts)))
        self.work.written += [len(prompts)] * max_new_tokens
        return [[] for _ in prompts]


def work_of(task: Task, reader: Any) -> Work:
    """What one model reads and writes in a task."""
    counting = Counting(reader, len(reader.tokenizer))
    task.evaluate(counting, None, lambda done, total: None)
    return counting.work
