"""The LLaMA that is built here, as a run sees it: states and head apart, a key-value cache, texts layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from slimrun.ops.framework.mindspore.llama import CHUNK, Llama, columns_of
from slimrun.ops.memory import Room
from slimrun.ops.model.text import Prefixed

from .language_model import FloatArray, IntArray, MindSporeModel, chosen, float_array
from .mapped import numbers
from .reading import Text, layer_by_layer, prefixed, rounded, through_graph, whole


class LlamaModel(MindSporeModel):
    """The LLaMA of `slimrun.ops.framework.mindspore.llama`, run with a key-value cache.

    Scores come from the states before the output head and the head apart, one prefix is run once for all its
    continuations, and generation computes each token once. `reading` says how.
    """

    network: Llama

    def __init__(
        self,
        network: Llama,
        tokenizer: Any,
        name: str,
        fingerprint: str,
        generation_config: Any = None,
        room: Room | None = None,
    ) -> None:
        super().__init__(network, tokenizer, name, fingerprint, room=room)
        self._generation_config = generation_config
        self._head: tuple[Any, Callable[[FloatArray], FloatArray]] = (None, self.output_head())

    def states(self, ids: Sequence[int]) -> Tensor:
        """States [1, T, H] before the output head, not compiled."""
        tokens = Tensor(np.array([ids], np.int32))
        return self.network.model(tokens, columns_of(tokens))[0]

    def hidden(self, ids: IntArray) -> FloatArray:
        """Hidden states [B, T, H] before the output head, of tokens [B, T], in one call."""
        self.check_tokens(ids, "row")
        return self._read(whole(ids))[0]

    def hiddens(self, batches: Sequence[IntArray]) -> Iterator[FloatArray]:
        """The same of each batch; all of them through a layer before the next where memory has no room."""
        if not self.room.full:
            yield from super().hiddens(batches)
            return
        for ids in batches:
            self.check_tokens(ids, "row")
        for states in layer_by_layer(self.network, list(map(whole, batches)), self.room):
            yield states[0]

    def log_probs(self, hidden: FloatArray) -> FloatArray:
        """Log-probabilities [N, V] of hidden states [N, H]."""
        head = self.network.lm_head
        if self._head[0] is not head:  # compiled anew once the head was quantized
            self._head = (head, self.output_head())
        return self._head[1](hidden)

    def output_head(self) -> Callable[[FloatArray], FloatArray]:
        """`log_probs` as a function that keeps nothing but the output head alive."""
        head, dtype = self.network.lm_head, self.network.dtype

        @ms.jit
        def scores(hidden: Any) -> Any:
            return ops.log_softmax(head(hidden.astype(dtype)).astype(ms.float32), -1)

        def log_probs(hidden: FloatArray) -> FloatArray:
            rows = rounded(len(hidden), CHUNK)
            padded = np.zeros((rows, hidden.shape[1]), np.float32)
            padded[: len(hidden)] = hidden
            return float_array(scores(Tensor(padded)))[: len(hidden)]

        return log_probs

    def continuations(self, prefix: Sequence[int], options: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Token log-probabilities of each option after the prefix, which is run once."""
        self.check_tokens([prefix], "prefix")
        self.check_tokens(options, "option")
        if len(options) == 0:
            return []
        return self._scores(self._read(prefixed(prefix, options)), options)

    def all_continuations(self, questions: Sequence[Prefixed]) -> Iterator[list[FloatArray]]:
        """The same of each; all of them through a layer before the next where memory has no room."""
        if not self.room.full or not all(options for _, options in questions):
            yield from super().all_continuations(questions)
            return
        self.check_tokens([prefix for prefix, _ in questions], "prefix")
        self.check_tokens([option for _, options in questions for option in options], "option")
        texts = [prefixed(*question) for question in questions]
        for (_, options), states in zip(questions, layer_by_layer(self.network, texts, self.room), strict=True):
            yield self._scores(states, options)

    def _scores(self, read: Sequence[FloatArray], options: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Token log-probabilities of options, of the states of a prefix's steps and of their own one."""
        length = max(map(len, options))
        last = read[-2 if length > 1 else -1][:, -1:]
        states = np.repeat(last, len(options), axis=0)
        if length > 1:
            states = np.concatenate([states, read[-1]], axis=1)
        scores = self.log_probs(states.reshape(len(options) * length, -1)).reshape(len(options), length, -1)
        return [chosen(row[: len(option)], option) for row, option in zip(scores, options)]

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations of all prompts in one batch, stop token not included."""
        self.check_request(prompts, max_new_tokens)
        if len(prompts) == 0 or max_new_tokens == 0:
            return [[] for _ in prompts]
        answers = self.network.generate(prompts, max_new_tokens, self.stop_tokens(), self._graph())
        self.room.release(numbers(self.network))
        return answers

    def save_description(self, folder: Path) -> None:
        """config.json (rope theta also at the top level, where older readers look) and the tokenizer's files."""
        config = self.network.config
        config.rope_theta = config.rope_parameters["rope_theta"]
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)
        if self._generation_config is not None:
            self._generation_config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _read(self, text: Text) -> list[FloatArray]:
        """States [B, T, H] before the output head, of each step of a text."""
        states = through_graph(self.network, self._graph(), text)
        self.room.release(numbers(self.network))
        return states

    def _compile(self) -> Any:
        backbone = self.network.model

        def advance(ids: Any, columns: Any, keys: Any, values: Any) -> Any:
            return backbone(ids, columns, keys, values)

        return ms.jit(advance)
