"""What the files of a bundle name: code and files, none of which may lie outside of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .description import damage, read_object

CONFIG = "config.json"
OPTIONAL = ("tokenizer_config.json", "generation_config.json")
CODE = re.compile(r"(?:\w[\w.-]*/\w[\w.-]*--)?[A-Za-z_]\w*\.[A-Za-z_]\w*")  # [owner/name--]module.Class
NEVER_OPENED = ("special_tokens_map_file", "added_tokens_file")  # where they once lay; older files still say it
KERNEL_KEYS = ("attn_implementation", "experts_implementation")  # "owner/name" there is code of a hub


def check_references(folder: Path, trust_remote_code: bool) -> None:
    """ValueError names the file that is no JSON object, or that names a file or code outside of the folder."""
    for file in [folder / CONFIG, *(folder / name for name in OPTIONAL if (folder / name).exists())]:
        for key, value in _entries(read_object(file)):
            if key == "auto_map" and not all(CODE.fullmatch(name) for name in _texts(value)):
                raise damage(file, f"auto_map={value!r}; allowed: MODULE.CLASS of a Python file in the folder")
            if key.endswith("_file") and key not in NEVER_OPENED and value is not None:
                raise damage(file, f"{key}={value!r} names a file that would be read from elsewhere; remove the key")
            if key.endswith("_files") and not all(Path(name).name == name for name in _texts(value)):
                raise damage(file, f"{key}={value!r} leads out of the folder; allowed: names of files in it")
            if key.strip("_") in KERNEL_KEYS and not trust_remote_code and any("/" in name for name in _texts(value)):
                raise damage(file, f"{key}={value!r} is code of a hub; give trust_remote_code=True if you trust it")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    left = [content]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            yield from item.items()
            left += item.values()
        elif isinstance(item, list):
            left += item


def _texts(value: Any) -> list[str]:
    """The texts in a value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []
