"""What stands before a text in tokens, and where a text goes on."""

from collections.abc import Sequence

import numpy as np

from slimrun.evaluation.base import Outputs, Reader

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


def _apart(model: Reader, before: str, after: str) -> bool:
    return model.encode(before + after) == model.encode(before) + model.encode(after)
