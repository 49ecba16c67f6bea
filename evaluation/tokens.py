"""What stands before a text in tokens, and where a text goes on."""

from collections.abc import Sequence

import numpy as np

from slimrun.evaluation.base import Outputs, Prefixed, Reader

REFUSE, CUT = TOO_LONG = ("refuse", "cut")

# of them no tokenizer joins all; one that marks each beginning gives none of them as it gives their halves
UNSPACED = (("a", "1"), ("：", "A"), (")", "b"))


def front(model: Reader, prefix: str | None) -> list[int]:
    """The tokens before each text: those of a prefix ("[gMASK] sop", "" for none); None: what the tokenizer puts there.

    Some models compute nonsense without: a Gemma without its `<bos>` has a perplexity of 10^9, with it one of 3.5.
    """
    return model.opening if prefix is None else model.encode(prefix) if prefix else []


def kept(tokens: Sequence[int]) -> Outputs:
    """front: the tokens before each text, for the signature; nothing where there are none."""
    return {"front": np.array(tokens)} if tokens else {}


def told(outputs: Outputs) -> str:
    """What a signature says of the tokens before each text."""
    return f"front:{','.join(map(str, outputs['front']))}" if "front" in outputs else "bos:no"


def dated(model: Reader) -> Outputs:
    """date: the one that prompts through the chat template state; nothing where they state none."""
    return {"date": np.array([model.prompt_date])} if model.prompt_date else {}


def told_date(outputs: Outputs) -> str:
    """What a signature says of the date in prompts."""
    return f"|date:{outputs['date'][0]}" if "date" in outputs else ""


def continued(model: Reader, before: str, after: str) -> list[int]:
    """The tokens of a text that goes on after another one.

    Encoded together and cut where the tokenizer marks the beginning of a text (SentencePiece puts a space there, which
    would come twice, or where there is none); apart elsewhere.
    """
    if _apart(model, "a", " b") and any(_apart(model, *pair) for pair in UNSPACED):
        return model.encode(after)
    start, whole = model.encode(before), model.encode(before + after)
    # the first tokens of `after` may have changed the last one of `before`: then it is no continuation of its tokens
    return whole[len(start) :] if whole[: len(start)] == start else model.encode(after)


def within(
    asked: Sequence[list[Prefixed]], around: list[int], context: int, too_long: str, key: str
) -> tuple[list[list[Prefixed]], list[str]]:
    """The parts of every item that fit into the context, and a note on how many lost the beginning of their text.

    `around` is what stands before any text. ValueError names the key of the text where one is too long and not to be
    cut, or cannot be.
    """
    scored = [max(len(option) for _, options in parts for option in options) for parts in asked]
    longest = [max(len(prefix) for prefix, _ in parts) + most for parts, most in zip(asked, scored)]
    beyond = sum(length > context for length in longest)
    if not beyond:
        return list(asked), []
    if too_long == REFUSE or context - max(scored) <= len(around):
        or_cut = f", or too_long={CUT}" if too_long == REFUSE else ""
        raise ValueError(
            f"{key}: {beyond} of {len(asked)} are too long, the longest has {max(longest)} tokens, the model's context "
            f"{context}; leave the task out, give shorter texts with path=FILE{or_cut}"
        )
    cut: list[list[Prefixed]] = [
        [(shortened(list(prefix), around, context - most), options) for prefix, options in parts]
        for parts, most in zip(asked, scored)
    ]
    return cut, [f"too_long={CUT}: {beyond} of {len(asked)} texts lose their beginning, to {context} tokens"]


def shortened(ids: list[int], around: list[int], room: int) -> list[int]:
    """A prompt that lost the beginning of its text; what stands before any text, opening and system prompt, stays."""
    head = next((i for i, pair in enumerate(zip(ids, around)) if pair[0] != pair[1]), len(around))
    return ids[:head] + ids[head + max(0, len(ids) - room) :]


def _apart(model: Reader, before: str, after: str) -> bool:
    return model.encode(before + after) == model.encode(before) + model.encode(after)
