"""Reading text: the pinned sets beside this file and the user's own files.

Every error is a ValueError that begins with `path=FILE`, names the line, and says what is allowed.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# kana, Han with its extensions, half-width kana. Hangul is left out: Korean puts spaces between words.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_WORD = re.compile(f"[{CJK}]|[^\\W{CJK}]+")


def words(text: str) -> list[str]:
    """Lower-case words; every character of Chinese and Japanese, which write no spaces, is a word of its own."""
    return _WORD.findall(text.lower())


def cjk_share(texts: Sequence[str]) -> float:
    """Share of Chinese and Japanese characters among all that are no white space."""
    text = "".join("".join(texts).split())
    return len(re.findall(f"[{CJK}]", text)) / max(1, len(text))


def pinned(name: str) -> Path:
    """The file of a pinned set, e.g. `wikipedia_evaluation`; evaluation/data/README.md says where it is from."""
    return Path(__file__).with_name("data") / f"{name}.jsonl"


def sha256(path: str | Path) -> str:
    """Hash of a file's bytes, in hex."""
    return hashlib.sha256(_read(path)).hexdigest()


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte order mark, with plain newlines."""
    data = _read(path)
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"path={path}, line {line} is not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start}); "
            "allowed: UTF-8 text"
        ) from None
    if not text.strip():
        raise ValueError(f"path={path} is empty; allowed: UTF-8 text")
    return text


def read_prompts(path: str | Path) -> list[str]:
    """Calibration prompts: one a line, or a .jsonl file whose objects have a `text`."""
    if Path(path).suffix == ".jsonl":
        return [row["text"] for row in read_jsonl(path, {"text": str})]
    return _lines(path, "one prompt a line, or .jsonl with objects that have a text")


def read_jsonl(path: str | Path, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """Objects of a JSON Lines file, every one with these fields, of these types and not empty.

    Further fields are kept. Raises ValueError with file, line and what is allowed.
    """
    allowed = "one JSON object a line with " + ", ".join(f"{key} ({kind.__name__})" for key, kind in fields.items())
    rows = []
    for number, line in enumerate(_lines(path, allowed), start=1):
        where = f"path={path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON ({error.msg}); allowed: {allowed}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where} is no JSON object; allowed: {allowed}")
        for key, kind in fields.items():
            if key not in row:
                raise ValueError(f"{where} has no {key}; allowed: {allowed}")
            # bool is an int to Python, but no answer index
            if not isinstance(row[key], kind) or isinstance(row[key], bool):
                raise ValueError(f"{where}: {key} is no {kind.__name__}; allowed: {allowed}")
            if isinstance(row[key], str) and not row[key].strip():
                raise ValueError(f"{where}: {key} is empty; allowed: {allowed}")
        rows.append(row)
    return rows


def select(rows: Sequence[T], limit: int, path: str | Path) -> list[T]:
    """`limit` rows evenly over all: a file sorted by subject still gives every subject."""
    if limit > len(rows):
        raise ValueError(f"limit={limit} is out of range; allowed: 1 to {len(rows)}, the items of {Path(path).name}")
    return [rows[i * len(rows) // limit] for i in range(limit)]


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"path={path} cannot be read ({error.strerror}); allowed: a readable file") from None


def _lines(path: str | Path, allowed: str) -> list[str]:
    # not splitlines(): that also cuts at U+2028 and form feeds, and the line numbers would not be an editor's
    lines = read_text(path).removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"path={path}, line {number} is empty; allowed: {allowed}")
    return lines
