"""Text in and out of a language model, the same in every framework: its tokenizer and when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CHECKSUM_PROMPTS = ("The capital of France is", "def add(a, b):\n    return", "中国的首都在哪里？")


class TextModel:
    """The half of a language model that knows its tokenizer (of transformers) and its config."""

    def __init__(self, tokenizer: Any, config: Any, generation_config: Any = None) -> None:
        self.tokenizer = tokenizer
        self._config = config
        self._generation_config = generation_config

    @property
    def context(self) -> int:
        """Longest window in tokens."""
        config = self._config  # ChatGLM calls it seq_length
        return int(getattr(config, "max_position_embeddings", getattr(config, "seq_length", 2048)))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, no special ones."""
        return list(self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a user's turn: through the chat template when the tokenizer has one, else plain text."""
        if self.tokenizer.chat_template is None:
            return list(self.tokenizer(text)["input_ids"])
        turn = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return self.encode(rendered)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones skipped."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def stop_tokens(self) -> set[int]:
        """The tokens that end an answer."""
        stop: set[int] = set()
        for holder in (self._generation_config, self._config, self.tokenizer):
            ids = getattr(holder, "eos_token_id", None)
            stop.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
        return stop
