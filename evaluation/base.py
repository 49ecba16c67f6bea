"""What an evaluation asks of a model, and what a task gives back.

The seam has two sides. `LanguageModel` is everything a task may know of a model: token ids in, numbers and text
out; `Reader` is the part of it that needs no weights. `Task` is everything the run knows of a task: measure one model
(`evaluate`), put two measurements side by side (`compare`). The float model is measured once and its outputs are
kept, so comparing never needs both models in memory.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain, islice, repeat
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from slimrun.evaluation.comparison import Report

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Outputs = dict[str, npt.NDArray[Any]]  # no object dtype: saved with allow_pickle=False, text as unicode arrays
Progress = Callable[[int, int], None]  # (done, total)
Prefixed = tuple[Sequence[int], Sequence[Sequence[int]]]  # tokens of a prefix, and of the options after it

T = TypeVar("T")
PROTOCOL_VERSION = 6  # raise it when the same settings begin to give other outputs


class Reader(Protocol):
    """How a causal language model reads text: its tokenizer and its context."""

    @property
    def context(self) -> int:
        """Longest window in tokens."""
        ...

    @property
    def prompt_date(self) -> str:
        """The date (ISO 8601) that prompts state because the chat template asks for one; "" when it does not."""
        ...

    @property
    def opening(self) -> list[int]:
        """The special tokens that the tokenizer itself puts before a text: `<s>`, `[gMASK] sop`, often none."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        ...

    def encode_prompt(self, text: str, system: str = "") -> list[int]:
        """Token ids of a user turn after a system's, through the chat template when the tokenizer has one."""
        ...


class LanguageModel(Reader, Protocol):
    """A causal language model with its tokenizer, on whatever framework and device."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens skipped."""
        ...

    def hidden(self, ids: IntArray) -> FloatArray:
        """States before the output head: [B, T] -> [B, T, H]."""
        ...

    def hiddens(self, batches: Sequence[IntArray]) -> Iterator[FloatArray]:
        """The same of each batch; a model larger than memory takes all of them through a block before the next one."""
        ...

    def log_probs(self, hidden: FloatArray) -> FloatArray:
        """Log-softmax of the output head: [N, H] -> [N, V]."""
        ...

    def head_rows(self) -> FloatArray | None:
        """[V, H] whose float32 product with the states the logits are; None where that is not all, or not known."""
        ...

    def continuations(self, prefix: Sequence[int], options: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Token log-probabilities of every option after the prefix, which is run once."""
        ...

    def all_continuations(self, questions: Sequence[Prefixed]) -> Iterator[list[FloatArray]]:
        """The same of each; a model larger than memory takes all of them through a block before the next one."""
        ...

    def disturbed(self) -> AbstractContextManager[bool]:
        """Inside, the model computes with noise as small as rounding; False where it cannot."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy decoding of one batch; the stop token is not part of the answer."""
        ...


@dataclass(frozen=True)
class Reference:
    """The float model as the run of the quantized one still knows it."""

    outputs: Outputs
    log_probs: Callable[[FloatArray], FloatArray]  # its output head


class Task(Protocol):
    """One benchmark: a frozen dataclass whose fields are the keys of its yaml."""

    def check(self) -> None:
        """Raise ValueError when the data cannot be used; called before any weight is loaded."""
        ...

    def fit(self, model: Reader) -> list[str]:
        """Raise ValueError, key first, when the data does not fit into the model's context; before weights load.

        Returns what a reader of the scores must know, key first: fewer windows than asked for, ...
        """
        ...

    def texts(self) -> list[str]:
        """What the model reads, to be compared with the calibration text."""
        ...

    def protocol(self) -> str:
        """Everything that can change the outputs (settings, prompt, sha256 of the data), for the cache key."""
        ...

    def evaluate(self, model: LanguageModel, reference: Reference | None, progress: Progress) -> Outputs:
        """Measure one model; with a reference (the float model's outputs) also what needs both."""
        ...

    def compare(self, name: str, float_outputs: Outputs, quant_outputs: Outputs) -> Report:
        """Put both measurements side by side, metric keys prefixed with `name`."""
        ...


def finite(task: str, float_outputs: Outputs, quant_outputs: Outputs, key: str) -> None:
    """Refuse log-probabilities that are no numbers: a comparison would take NaN for the most likely."""
    for outputs, model in ((float_outputs, "float"), (quant_outputs, "quantized")):
        wrong = int((~np.isfinite(outputs[key])).sum())
        if wrong:
            of_all = f"{wrong} of {outputs[key].size} log-probabilities"
            raise ArithmeticError(f"{task}: {of_all} of the {model} model are no finite numbers")


def at_least(key: str, value: float, low: float) -> None:
    """Refuse a setting below its range, in the words every setting of the project is refused with."""
    if not value >= low:
        raise ValueError(f"{key}={value} is out of range; allowed: {low} or more")


def one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a setting that is none of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{key}={value} is unknown; allowed: {', '.join(allowed)}")


PATHS = ("path", "target_path", "shots_path")  # of a task: where its data lies, which changes nothing


def protocol_of(task: Any, data_sha256: str, *, without: Sequence[str]) -> str:
    """The protocol of a task as JSON: its settings, and the hash of the data in place of the data's path.

    `without` names the settings that only change how outputs are compared, a margin for one: the kept outputs of
    the float model stay good.
    """
    kept = {key: value for key, value in asdict(task).items() if key not in (*PATHS, *without)}
    facts = {
        "task": type(task).__name__,
        "version": PROTOCOL_VERSION,
        "own_data": bool(task.path),
        "sha256": data_sha256,
    }
    return json.dumps({**kept, **facts}, sort_keys=True)


def signed(signature: str, protocol: str) -> str:
    """A signature that ends with the hash of the protocol: scores of equal ones come of the same settings and data."""
    return f"{signature}|protocol:{sha256(protocol.encode()).hexdigest()[:12]}"


def batches(items: Sequence[T], size: int) -> Iterator[tuple[list[T], int]]:
    """Yield (batch, how many of it count): the last one is filled up by repeating, unless it is the only one.

    Every batch has one shape, because scores move with the shape (other kernels, another order of summation) and
    then a difference between two runs would not be the model's.
    """
    iterator, size = iter(items), min(size, len(items))
    while batch := list(islice(iterator, size)):
        yield list(islice(chain(batch, repeat(batch[-1])), size)), len(batch)
