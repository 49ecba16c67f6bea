"""A language model of a few numpy arrays behind the real protocol: bytes are tokens, two bytes are its memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from slimrun.evaluation.base import FloatArray, IntArray, Prefixed

VOCABULARY, WIDTH, STOP = 257, 16, 256


class FakeModel:
    """Deterministic; `noise` moves the output head the way a quantization would."""

    def __init__(self, noise: float = 0.0, context: int = 8192) -> None:
        rng = np.random.default_rng(7)
        self.context = context
        self.prompt_date = ""
        self.opening: list[int] = []
        self.chaos = 1e-6  # by how much its embeddings move when it is disturbed
        self.calls: list[tuple[int, int]] = []  # batch and tokens of what was run
        self._embedding = rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
        head = rng.normal(size=(WIDTH, VOCABULARY)).astype(np.float32)
        self._head = head + noise * np.random.default_rng(8).normal(size=head.shape).astype(np.float32)
        self._bias = np.full(VOCABULARY, -20, np.float32)  # printable bytes and the end only
        self._bias[32:127] = 0
        self._bias[STOP] = 1

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_prompt(self, text: str, system: str = "") -> list[int]:
        return self.encode(f"{system}question: {text}\nanswer: ")

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != STOP).decode("utf-8", errors="replace")

    def hidden(self, ids: IntArray) -> FloatArray:
        self.calls.append(ids.shape)
        now = self._embedding[ids]
        before = np.roll(now, 1, axis=1)
        before[:, 0] = 0
        return np.tanh(now + 0.5 * before)

    def hiddens(self, batches: Sequence[IntArray]) -> Iterator[FloatArray]:
        return map(self.hidden, batches)

    @contextmanager
    def disturbed(self) -> Iterator[bool]:
        before = self._embedding
        self._embedding = before * np.float32(1 + self.chaos)
        yield True
        self._embedding = before

    def log_probs(self, hidden: FloatArray) -> FloatArray:
        logits = hidden @ self._head + self._bias
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def head_rows(self) -> FloatArray | None:
        return None if self._bias.any() else np.ascontiguousarray(self._head.T)

    def continuations(self, prefix: Sequence[int], options: Sequence[Sequence[int]]) -> list[FloatArray]:
        scores = []
        for option in options:
            states = self.hidden(np.array([[*prefix, *option]]))[0, len(prefix) - 1 : -1]
            scores.append(self.log_probs(states)[np.arange(len(option)), list(option)])
        return scores

    def all_continuations(self, questions: Sequence[Prefixed]) -> Iterator[list[FloatArray]]:
        return (self.continuations(*question) for question in questions)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        self.calls.append((len(prompts), max_new_tokens))
        answers = []
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(max_new_tokens):
                state = self.hidden(np.array([ids[-2:]]))[0, -1:]
                token = int(self.log_probs(state).argmax())
                if token == STOP:
                    break
                ids.append(token)
            answers.append(ids[len(prompt) :])
        return answers


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""
    assert 0 < done <= total
