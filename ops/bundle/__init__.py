"""The deployable bundle: what is written, how it is read back, and the proof that both are the same.

A folder (0750) with one weight file (0400; safetensors, or MindSpore's .ckpt), a description in JSON (0600) that names
the type of every tensor, config.json and the tokenizer's files (0600), and a manifest of what all of them have to be
(`slimrun.json`, 0600). The layout follows msModelSlim's W8A8S files; types that end in C are coded: int8 weights as
`.weight`, `.index` and `.info`, other tensors (FLOATC, INTC) as the bytes of `compress.encode` where these are fewer.
The description's `container` says which coder wrote them, so that nobody takes our stream for the one of the Ascend
hardware.
"""

from .description import CKPT, SAFETENSORS, can_decode, damage, named
from .reader import Bundle, Stored, decode, decode_numbers, open_stored, read, undisturbed, verify
from .writer import _replace, format_of, size, write

__all__ = [
    "CKPT",
    "SAFETENSORS",
    "Bundle",
    "Stored",
    "_replace",
    "can_decode",
    "damage",
    "decode",
    "decode_numbers",
    "format_of",
    "named",
    "open_stored",
    "read",
    "size",
    "undisturbed",
    "verify",
    "write",
]
