"""Text in and out of a language model, the same in every framework: its tokenizer and when it stops."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from slimrun.ops.errors import Unavailable

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Prefixed = tuple[Sequence[int], Sequence[Sequence[int]]]  # tokens of a prefix, and of the options after it

CHECKSUM_PROMPTS = ("The capital of France is", "def add(a, b):\n    return", "中国的首都在哪里？")
# Chat templates that put the day into the prompt (LLaMA 3.1, Granite, gpt-oss) would give other scores each day. They
# are told this one, the start of the day that LLaMA's own templates fall back to.
PROMPT_TIME = datetime(2024, 7, 26)


class TextModel:
    """The half of a language model that knows its tokenizer (of transformers) and its config."""

    def __init__(self, tokenizer: Any, config: Any, generation_config: Any = None) -> None:
        self.tokenizer = tokenizer
        self._config = config
        self._generation_config = generation_config
        self.notes: list[str] = []  # what a reader of the scores must know of how they came about
        self.prompt_date = ""  # ISO 8601, once a prompt was encoded whose chat template asks for the time

    @property
    def context(self) -> int:
        """Longest window in tokens."""
        config = self._config  # ChatGLM calls it seq_length
        return int(getattr(config, "max_position_embeddings", getattr(config, "seq_length", 2048)))

    @property
    def vocabulary(self) -> int | None:
        """Rows of the embeddings as the config says, None where it does not."""
        sizes = [getattr(self._config, name, None) for name in ("vocab_size", "padded_vocab_size")]
        return max((size for size in sizes if isinstance(size, int)), default=None)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, no special ones."""
        return list(self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    @property
    def opening(self) -> list[int]:
        """The special tokens that the tokenizer itself puts before a text."""
        whole, plain = list(self.tokenizer("a")["input_ids"]), self.encode("a")
        starts = range(len(whole) - len(plain) + 1)
        return next((whole[:at] for at in starts if whole[at : at + len(plain)] == plain), [])

    def encode_prompt(self, text: str, system: str = "") -> list[int]:
        """Tokens of a user's turn, after a system's: through the chat template when the tokenizer has one, else plain.

        Unavailable when the template takes no such turns.
        """
        if getattr(self.tokenizer, "chat_template", None) is None:
            return list(self.tokenizer(f"{system}\n\n{text}" if system else text)["input_ids"])
        return self.encode(self._rendered(text, system))

    def hidden(self, ids: IntArray) -> FloatArray:
        """States [B, T, H] before the output head, of tokens [B, T]."""
        raise NotImplementedError

    def hiddens(self, batches: Sequence[IntArray]) -> Iterator[FloatArray]:
        """States [B, T, H] of each batch."""
        return map(self.hidden, batches)

    def continuations(self, prefix: Sequence[int], options: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Token log-probabilities of each option after the prefix."""
        raise NotImplementedError

    def all_continuations(self, questions: Sequence[Prefixed]) -> Iterator[list[FloatArray]]:
        """The same of each."""
        return (self.continuations(*question) for question in questions)

    def head_rows(self) -> FloatArray | None:
        """[V, H] whose float32 product with the states the logits are; None where that is not all, or not known."""
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones skipped."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def stop_tokens(self) -> set[int]:
        """The tokens that end an answer."""
        stop: set[int] = set()
        for holder in (self._generation_config, self._config, self.tokenizer):
            ids = getattr(holder, "eos_token_id", None)
            stop.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
        return stop | set(getattr(self.tokenizer, "ends_of_turn", ()))  # ChatGLM3's

    def check_request(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """ValueError when the prompts are no tokens of the model, or fewer than none are asked for."""
        self.check_tokens(prompts, "prompt")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens={max_new_tokens} is out of range; allowed: 0 or more")

    def check_tokens(self, rows: Iterable[Any], what: str) -> None:
        """ValueError when one of the rows, called `what`, is empty or holds what is no token of the model."""
        end = self.vocabulary or sys.maxsize
        for number, row in enumerate(rows, start=1):
            try:
                tokens = [] if isinstance(row, str) else list(map(int, row))
            except (TypeError, ValueError):
                raise ValueError(f"{what} {number} is no list of token ids; encode(text) gives one") from None
            if not tokens:
                kind = "text" if isinstance(row, str) else "empty"
                raise ValueError(f"{what} {number} is {kind}; give token ids, at least one: encode(text) gives them")
            wrong = next((token for token in tokens if not 0 <= token < end), None)
            if wrong is not None:
                raise ValueError(f"{what} {number} holds {wrong}, no token of the model; allowed: 0 to {end - 1}")

    def _rendered(self, text: str, system: str = "") -> str:
        """A user's turn as the chat template writes it, at a time that never changes."""
        turn = [{"role": "system", "content": system}] if system else []
        turn.append({"role": "user", "content": text})
        _clock.asked = False
        try:
            _stop_clock(self.tokenizer)
            rendered = self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # the template language, and whatever a template raises
            reason = str(error).strip().split("\n")[0]
            raise Unavailable(
                f"the chat template of the tokenizer takes no plain user turn ({reason}); give the model a "
                "chat_template.jinja that does, or leave out the tasks that ask: task=[perplexity,multiple_choice]"
            ) from error
        if _clock.asked:
            self.prompt_date = PROMPT_TIME.date().isoformat()
        return str(rendered)


_clock = threading.local()  # whether a template asked for the time


def _prompt_time(form: str) -> str:
    _clock.asked = True
    return PROMPT_TIME.strftime(form)


def _stop_clock(tokenizer: Any) -> None:
    """Give `PROMPT_TIME` to the tokenizer's template in the place of the time now."""
    if "strftime_now" not in str(tokenizer.chat_template):
        return
    from transformers.utils.chat_template_utils import _compile_jinja_template

    # transformers keeps what it compiled, and lets nobody else hand a function to a template
    _compile_jinja_template(tokenizer.get_chat_template()).environment.globals["strftime_now"] = _prompt_time
