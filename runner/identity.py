"""What makes two jobs the same one: hashes of settings, of contents, and of the code that shapes results."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

SHAPES_RESULTS = ("torch", "transformers", "numpy", "sacrebleu", "rouge-score")


def digest(*parts: Any) -> str:
    """sha256 of anything json can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@cache
def code_hash() -> str:
    """Hash of everything of ours and of the libraries above that can change a result."""
    root = Path(__file__).parent.parent
    total = hashlib.sha256(json.dumps([version(name) for name in SHAPES_RESULTS]).encode())
    files = [root / "runner" / name for name in ("choices.py", "experiment.py", "result.py", "settings.py")]
    files += [file for room in ("ops", "evaluation") for file in sorted((root / room).rglob("*"))]
    for file in files:
        if file.suffix in {".py", ".cpp", ".hpp"}:
            total.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


def settings_of(value: Any, *without: str) -> tuple[str, dict[str, Any]]:
    """A configured object as (its class, its fields)."""
    return type(value).__qualname__, {key: item for key, item in asdict(value).items() if key not in without}
