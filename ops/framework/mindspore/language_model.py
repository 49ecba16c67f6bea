"""A MindSpore causal language model as a run sees it: scoring and generation in compiled graphs, tensors to store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import numpy.typing as npt
import torch
from mindspore import Tensor, nn

from slimrun.ops.memory import Room
from slimrun.ops.model.text import CHECKSUM_PROMPTS, TextModel
from slimrun.ops.weights.mindspore import to_torch

from .int8_cell import QuantizedCell

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

LOADER_KEY = "slimrun_loader"  # in the config.json of a network that the user's own function makes
CHECKSUM_WIDTH = 512  # tokens: that of the default windows, so that nothing is compiled for the checksum alone
SHORTEST = 32  # tokens that a user's network is compiled for at least; then the powers of two


class MindSporeModel(TextModel):
    """A user's causal network that gives logits [B, T, V] of tokens [B, T], with a tokenizer of transformers.

    Its "hidden states" are the logits themselves. Tokens are padded on the right, which a causal network does not
    see, to powers of two: each is compiled once. Nothing is known of a cache, so generation runs the whole text anew.
    """

    def __init__(
        self,
        network: nn.Cell,
        tokenizer: Any,
        name: str,
        fingerprint: str,
        loader: str = "",
        room: Room | None = None,
    ) -> None:
        super().__init__(tokenizer, getattr(network, "config", None))
        self.network = network.set_train(False)
        self.name = name
        self.fingerprint = fingerprint
        self.room = room or Room()
        self.shapes = {parameter.name: tuple(parameter.shape) for parameter in network.get_parameters()}
        self._loader = loader
        self._compiled: tuple[list[str], Any] = ([], None)

    def states(self, ids: Sequence[int]) -> Tensor:
        """What calibration runs when the last linear stays float."""
        return self.logits(ids)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits [1, T, V], not compiled."""
        return self.network(Tensor(np.array([ids], np.int32)))

    def hidden(self, ids: IntArray) -> FloatArray:
        """Logits [B, T, V] of tokens [B, T]."""
        self.check_tokens(ids, "row")
        batch, length = ids.shape
        width = max(SHORTEST, 1 << (length - 1).bit_length())
        padded = np.zeros((batch, width), np.int32)
        padded[:, :length] = ids
        return float_array(self._graph()(Tensor(padded)))[:, :length]

    @contextmanager
    def disturbed(self) -> Iterator[bool]:
        """Nothing is moved: a compiled network takes no noise between its parts."""
        yield False

    def log_probs(self, hidden: FloatArray) -> FloatArray:
        """Log-probabilities [N, V] of hidden states [N, H]."""
        return self.output_head()(hidden)

    def output_head(self) -> Callable[[FloatArray], FloatArray]:
        """`log_probs` as a function that keeps nothing but the output head alive."""
        return _log_softmax

    def continuations(self, prefix: Sequence[int], options: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Token log-probabilities of each option after the prefix."""
        self.check_tokens([prefix], "prefix")
        self.check_tokens(options, "option")
        if len(options) == 0:
            return []
        length = len(prefix) + max(map(len, options))
        rows = [[*prefix, *option, *[0] * (length - len(prefix) - len(option))] for option in options]
        scores = self.hidden(np.array(rows, np.int64))[:, len(prefix) - 1 :]
        return [chosen(self.log_probs(row[: len(option)]), option) for row, option in zip(scores, options)]

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations of all prompts in one batch, stop token not included."""
        self.check_request(prompts, max_new_tokens)
        if len(prompts) == 0 or max_new_tokens == 0:
            return [[] for _ in prompts]
        stop = self.stop_tokens()
        answers: list[list[int]] = [[] for _ in prompts]
        going = set(range(len(prompts)))
        width = max(map(len, prompts)) + max_new_tokens
        for _ in range(max_new_tokens):
            rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers)]
            ids = np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int64)
            logits = self.hidden(ids)
            for row in sorted(going):
                token = int(logits[row, len(rows[row]) - 1].argmax())
                if token in stop:
                    going.remove(row)
                else:
                    answers[row].append(token)
            if not going:
                break
        return answers

    def logits_checksum(self) -> str:
        """sha256 over the log-probabilities of a few fixed prompts."""
        digest = hashlib.sha256()
        for prompt in CHECKSUM_PROMPTS:
            tokens = self.encode(prompt)
            padded = np.zeros((1, max(len(tokens), min(CHECKSUM_WIDTH, self.context))), np.int64)
            padded[0, : len(tokens)] = tokens
            hidden = self.hidden(padded)[0, : len(tokens)]
            digest.update(np.ascontiguousarray(self.log_probs(hidden)).tobytes())
        return digest.hexdigest()

    def quantized(self) -> list[str]:
        """Names of the quantized linears, in the order of the cells."""
        return [name for name, cell in self.network.cells_and_names() if isinstance(cell, QuantizedCell)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the bundle stores; see `stored_tensors`."""
        return stored_tensors(self.network)

    def save_description(self, folder: Path) -> None:
        """config.json, which names the function that makes the network, and the tokenizer's files."""
        (folder / "config.json").write_text(json.dumps({LOADER_KEY: self._loader}) + "\n", encoding="utf-8")
        self.tokenizer.save_pretrained(folder)

    def _graph(self) -> Any:
        """The compiled network; compiled anew once linears were replaced (MindSpore would go on with the old ones)."""
        cells = self.quantized()
        if self._compiled[1] is None or self._compiled[0] != cells:
            self._compiled = (cells, self._compile())
        return self._compiled[1]

    def _compile(self) -> Any:
        network = self.network

        def logits(ids: Any) -> Any:
            return network(ids)

        return ms.jit(logits)


def stored_tensors(network: nn.Cell) -> dict[str, torch.Tensor]:
    """Quantized linears in their file format, every other parameter untouched; tied ones once."""
    quantized = {name: cell for name, cell in network.cells_and_names() if isinstance(cell, QuantizedCell)}
    stored = {
        f"{name}.{suffix}": tensor
        for name, cell in quantized.items()
        for suffix, tensor in cell.linear.stored().items()
    }
    inside = {id(parameter) for cell in quantized.values() for parameter in cell.get_parameters()}
    for parameter in network.get_parameters():
        if id(parameter) not in inside:
            stored[parameter.name] = to_torch(parameter)
    return {name: tensor.detach().contiguous() for name, tensor in stored.items()}


def chosen(log_probs: FloatArray, tokens: Sequence[int]) -> FloatArray:
    """Of log-probabilities [T, V] those of the tokens [T]."""
    return log_probs[np.arange(len(tokens)), list(tokens)]


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    scores: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return scores


def float_array(tensor: Tensor) -> FloatArray:
    """The numbers of a tensor in float32."""
    return np.asarray(tensor.astype(ms.float32).asnumpy())
