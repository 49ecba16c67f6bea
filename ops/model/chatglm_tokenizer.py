"""The tokenizer of ChatGLM2 and ChatGLM3: sentencepiece, and commands behind its vocabulary; two begin every text.

ChatGLM3 talks in roles, which are commands too; ChatGLM2, whose vocabulary has nothing in their places, does not.
"""

from __future__ import annotations

import re
import shutil
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizer

COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
PREFIX = ("[gMASK]", "sop")
ASSISTANT = "<|assistant|>"
ROLES = ("<|system|>", "<|user|>", ASSISTANT, "<|observation|>")
ENDS_OF_TURN = ("<|user|>", "<|observation|>")  # an answer is over where somebody else speaks
CODE = "tokenization_chatglm.py"  # the original's, which is never run: it only tells that there are roles
TEMPLATE = (
    "[gMASK]sop{% for turn in messages %}<|{{ turn['role'] }}|>\n {{ turn['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class ChatGLMTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """Reads `tokenizer.model`; commands decode to nothing.

    Roles are there where the folder has a chat template that speaks of them, or ChatGLM3's own code beside.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "tokenizer.model"}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask", "position_ids"]

    def __init__(self, vocab_file: str, padding_side: str = "left", **others: Any) -> None:
        self.vocab_file = vocab_file
        self._pieces = SentencePieceProcessor(model_file=vocab_file)
        count = self._pieces.vocab_size()
        code = Path(vocab_file).with_name(CODE)
        if others.get("chat_template") is None and code.is_file() and ASSISTANT in code.read_text(encoding="utf-8"):
            others["chat_template"] = TEMPLATE
        roles = ROLES if ASSISTANT in str(others.get("chat_template")) else ()
        self._commands = {name: count + place for place, name in enumerate((*COMMANDS, *roles))}
        self._spoken = re.compile(f"({'|'.join(map(re.escape, self._commands))})") if roles else None
        for fixed in ("unk_token", "pad_token", "eos_token", "clean_up_tokenization_spaces", "auto_map"):
            others.pop(fixed, None)  # older files name others, which the original does not read either
        super().__init__(
            padding_side=padding_side,
            unk_token="<unk>",
            pad_token="<unk>",
            eos_token="</s>",
            clean_up_tokenization_spaces=False,
            **others,
        )

    @property
    def vocab_size(self) -> int:
        """Pieces and commands."""
        return self._pieces.vocab_size() + len(self._commands)

    @property
    def ends_of_turn(self) -> list[int]:
        """Commands that end an answer, beside the end of the text."""
        return [self._commands[name] for name in ENDS_OF_TURN if name in self._commands]

    def get_vocab(self) -> dict[str, int]:
        """Every piece and command with its number."""
        return {self._pieces.IdToPiece(i): i for i in range(self._pieces.vocab_size())} | self._commands

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """A text as the model reads it: behind [gMASK] sop; a second one ends in </s>."""
        begun = [*(self._commands[name] for name in PREFIX), *token_ids_0]
        return begun if token_ids_1 is None else [*begun, *token_ids_1, self._pieces.eos_id()]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """What `build_inputs_with_special_tokens` adds."""
        return len(PREFIX) + pair

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy tokenizer.model."""
        name = self.vocab_files_names["vocab_file"]
        copy = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        if Path(self.vocab_file).absolute() != copy.absolute():
            shutil.copyfile(self.vocab_file, copy)
        return (str(copy),)

    def _tokenize(self, text: str, **others: Any) -> list[str]:
        parts = self._spoken.split(text) if self._spoken else [text]  # a chat template writes commands as text
        return list(chain(*([part] if part in self._commands else self._pieces.EncodeAsPieces(part) for part in parts)))

    def _convert_token_to_id(self, token: str) -> int:
        return self._commands.get(token, self._pieces.PieceToId(token))

    def _convert_id_to_token(self, index: int) -> str:
        silent = (self._pieces.bos_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if index in silent or not 0 <= index < self._pieces.vocab_size():
            return ""
        piece: str = self._pieces.IdToPiece(index)
        return piece

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces."""
        text: str = self._pieces.DecodePieces(tokens)
        return text
