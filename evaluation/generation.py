"""Answers of a model to many prompts, in batches of one shape. Shared by the tasks that score generated text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimrun.evaluation.base import LanguageModel, Outputs, Progress, Reader, batches
from slimrun.evaluation.comparison import SAMPLES, Score, paired

REFUSE, CUT = TOO_LONG = ("refuse", "cut")


@dataclass(frozen=True)
class Prompting:
    """How prompts are put to a model: as turns or plain, after which system prompt, and what of too long ones."""

    chat: bool = True
    system: str | None = None
    too_long: str = REFUSE


AS_A_TURN = Prompting()


def turn(model: Reader, text: str, chat: bool, system: str | None) -> list[int]:
    """The tokens of a prompt: as a user's turn after a system's, or as plain text."""
    if chat:
        return model.encode_prompt(text, system or "")
    return [*model.opening, *model.encode(f"{system}\n\n{text}" if system else text)]


def encoded(
    model: Reader, prompts: Sequence[str], max_new_tokens: int, prompting: Prompting = AS_A_TURN
) -> tuple[list[list[int]], list[str]]:
    """The tokens of every prompt, and a note on those that lost their beginning.

    Raises ValueError when a prompt with its answer does not fit into the model's context, unless it is to be cut:
    cutting it silently would score an answer to another question.
    """
    tokens = [turn(model, prompt, prompting.chat, prompting.system) for prompt in prompts]
    if not all(tokens):
        raise ValueError("prompt: the tokenizer makes no token of one of the prompts")
    room = model.context - max_new_tokens
    beyond = sum(len(ids) > room for ids in tokens)
    if prompting.too_long == CUT and beyond and room > 0:
        note = f"too_long={CUT}: {beyond} of {len(tokens)} prompts lose their beginning, to {room} tokens"
        return [ids[-room:] for ids in tokens], [note]
    longest = max(map(len, tokens))
    if longest >= model.context:
        raise ValueError(
            f"prompt: {beyond} of {len(tokens)} are too long, the longest has {longest} tokens, the model's context "
            f"{model.context}; leave the task out, give shorter texts with path=FILE, or too_long={CUT}"
        )
    if longest + max_new_tokens > model.context:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} is out of range; allowed: 1 to {model.context - longest}, "
            f"the model's context of {model.context} less the longest prompt"
        )
    return tokens, []


def answers(
    model: LanguageModel, tokens: Sequence[Sequence[int]], batch: int, max_new_tokens: int, progress: Progress
) -> Outputs:
    """texts: greedy answers, stripped, in the order of the prompts; cut: which of them reached `max_new_tokens`.

    date: the one that the prompts state, if any. The prompts are those of `encoded`.
    """
    texts: list[str] = []
    cut: list[bool] = []
    for group, count in batches(tokens, batch):
        written = model.generate(group, max_new_tokens)[:count]
        texts += [model.decode(ids).strip() for ids in written]
        cut += [len(ids) >= max_new_tokens for ids in written]
        progress(len(texts), len(tokens))
    outputs: Outputs = {"texts": np.array(texts, dtype=np.str_), "cut": np.array(cut)}  # numpy saves it without pickle
    return outputs | ({"date": np.array([model.prompt_date])} if model.prompt_date else {})


def flaws(task: str, before: Outputs, after: Outputs) -> list[Score]:
    """The rows of what is wrong with answers whatever they say: share of empty ones, share of cut ones.

    A row is there where either model has one: scores move with them.
    """
    sides = [
        {
            "empty answers, share": side["texts"] == "",
            "cut answers, share": side.get("cut", np.zeros(len(side["texts"]))),
        }
        for side in (before, after)
    ]
    shares = {name: [np.asarray(side[name], np.float64) for side in sides] for name in sides[0]}
    return [paired(task, name, *pair, higher_is_better=False) for name, pair in shares.items() if np.any(pair)]


def dated(outputs: Outputs) -> str:
    """What a signature says of the date that a chat template put into the prompts; "" when it asked for none."""
    return f"|date:{outputs['date'][0]}" if "date" in outputs else ""


def examples(
    inputs: Sequence[str], references: Sequence[str], was: Sequence[str], now: Sequence[str]
) -> list[dict[str, str]]:
    """A few items for a person to read, those with a changed answer first."""
    order = sorted(range(len(inputs)), key=lambda i: was[i] == now[i])
    return [
        {"input": inputs[i], "reference": references[i], "float": was[i], "quantized": now[i]} for i in order[:SAMPLES]
    ]
