"""Reading files, pinned ones and the user's own.

What a file holds is told by its content, whatever its name: plain text, JSON lines, or a JSON array. What cannot be
told, or would be taken for text with its syntax (CSV), is refused. Every error is a ValueError that begins with
`path=FILE`, names the line or the item of an array, and says what is allowed.
"""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Row = dict[str, Any]
Placed = list[tuple[str, Any]]  # values with where they stand in the file


TEXT = {"text": str}  # the field of own texts
JSON_NAMES = (".json", ".jsonl", ".ndjson", ".jsonlines")
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
TABLE_NAMES = {".csv": "commas", ".tsv": "tabs"}
PROMPTS = "one prompt a line, or JSON (lines or an array) of objects with text (str) or of strings"
TEXTS = "UTF-8 text, or JSON (lines or an array) of objects with text (str) or of strings"
SHOWN_KEYS = 8  # of an object that lacks the right one

_OPENS_JSON = re.compile(r'\s*(\{\s*"|\[\s*[{"])')  # nothing else begins so; [INST], {name} and [[Link]] are text
_SPACE = re.compile(r"\s*")
_HEADER = re.compile(r"\w[\w.-]*( [\w.-]+){0,2}")  # the name of a CSV column: prose has a space after its commas


def sha256(path: str | Path) -> str:
    """Hash of a file's bytes, in hex."""
    return hashlib.sha256(_read(path)).hexdigest()


def read_text(path: str | Path) -> str:
    """The text of a file; texts in JSON are joined by an empty line."""
    content = _decoded(path, TEXTS)
    found = _json(path, content, TEXTS)
    return content if found is None else "\n\n".join(row["text"] for row in _rows(path, found, TEXT, TEXTS))


def read_prompts(path: str | Path) -> list[str]:
    """Calibration prompts: one a line, or the `text` of objects in JSON."""
    content = _decoded(path, PROMPTS)
    found = _json(path, content, PROMPTS)
    if found is not None:
        return [row["text"] for row in _rows(path, found, TEXT, PROMPTS)]
    # not splitlines(): that also cuts at U+2028 and form feeds, and the line numbers would not be an editor's
    lines = content.split("\n")
    while not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"path={path}, line {number} is empty; allowed: {PROMPTS}")
    return lines


def read_jsonl(
    path: str | Path, fields: Mapping[str, type], problem: Callable[[Row], str | None] = lambda row: None
) -> list[Row]:
    """Objects of JSON lines or of a JSON array, every one with these fields, of these types and not empty.

    Further fields are kept. `problem` says what else is wrong with one. Raises ValueError with file, line (of an
    array: item) and what is allowed.
    """
    named = ", ".join(f"{key} ({kind.__name__})" for key, kind in fields.items())
    allowed = f"JSON (lines or an array) of objects with {named}"
    content = _decoded(path, allowed)
    found = _json(path, content, allowed)
    if found is None:
        raise ValueError(f"path={path}, line 1 is no JSON object; allowed: {allowed}")
    return _rows(path, found, fields, allowed, problem)


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


def _decoded(path: str | Path, allowed: str) -> str:
    """The content of a UTF-8 file, without a byte order mark, every line end a plain newline."""
    data = _read(path)
    try:
        content = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")  # the last was the old Mac's
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"path={path}, line {line} is not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start}); "
            "allowed: UTF-8 text"
        ) from None
    if not content.strip():
        raise ValueError(f"path={path} is empty; allowed: UTF-8 text")
    if "\0" in content:
        raise ValueError(f"path={path} holds zero bytes, it is no text; allowed: {allowed}")
    return content


def _separator(path: Path, content: str) -> str:
    """What separates the columns when the content is a table, by its name or its lines; "" for anything else."""
    if path.suffix.lower() in TABLE_NAMES:
        return TABLE_NAMES[path.suffix.lower()]
    lines = content.strip("\n").split("\n")
    for mark, name in SEPARATORS.items():
        try:
            columns = len(next(csv.reader(lines[:1], delimiter=mark)))
            rows = list(csv.reader(lines, delimiter=mark)) if columns > 1 else []
        except csv.Error:  # a line beyond its limit
            continue
        if len(rows) < 2:
            continue
        named = all(map(_HEADER.fullmatch, rows[0])) and all(len(row) >= columns for row in rows)
        quoted = all(f'{mark}"' in line or f'"{mark}' in line for line in lines)
        if named or ((quoted or mark == "\t") and all(len(row) == columns for row in rows)):
            return name
    return ""


def _json(path: str | Path, content: str, allowed: str) -> Placed | None:
    """The values of JSON lines, or the items of one JSON array; None when the content is plain text and no table."""
    named = Path(path).suffix.lower() in JSON_NAMES
    found: Placed | None = None
    if named or content.lstrip()[0] in "{[":
        try:
            found = _values(content)
        except ValueError as error:
            if named or _OPENS_JSON.match(content):
                raise ValueError(f"path={path}, {error}; allowed: {allowed}") from None
    if found is None and (separator := _separator(Path(path), content)):
        raise ValueError(
            f"path={path} is a table, columns separated by {separator}; allowed: {allowed}; write the column that you "
            "mean as one of them"
        )
    if found == []:
        raise ValueError(f"path={path} holds an empty array; allowed: {allowed}")
    return found


def _values(content: str) -> Placed:
    """JSON values one after the other, each on its line or over several; of a single array its items."""
    decoder = json.JSONDecoder()
    found: Placed = []
    line, counted, at = 1, 0, _after_space(content, 0)
    while at < len(content):
        line, counted = line + content.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(content, at)
        except json.JSONDecodeError as error:
            line = content[: error.pos].rstrip().count("\n") + 1
            raise ValueError(f"line {line} is not JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
            raise ValueError(f"line {line} is not JSON that can be read ({error})") from None
        found.append((f"line {line}", value))
        at = _after_space(content, at)
    if len(found) == 1 and isinstance(found[0][1], list):
        return [(f"item {number}", item) for number, item in enumerate(found[0][1], start=1)]
    return found


def _after_space(content: str, at: int) -> int:
    found = _SPACE.match(content, at)
    return found.end() if found else at


def _rows(
    path: str | Path,
    found: Placed,
    fields: Mapping[str, type],
    allowed: str,
    problem: Callable[[Row], str | None] = lambda row: None,
) -> list[Row]:
    """The values as objects with these fields; a string is one with text."""
    rows = []
    for place, value in found:
        row = {"text": value} if isinstance(value, str) and fields == TEXT else value
        wrong = _wrong(row, fields) or problem(row)
        if wrong:
            raise ValueError(f"path={path}, {place}{wrong}; allowed: {allowed}")
        rows.append(row)
    return rows


def _wrong(row: Any, fields: Mapping[str, type]) -> str | None:
    """What is wrong with a row, to be read after its place."""
    if not isinstance(row, dict):
        return " is no JSON object"
    for key, kind in fields.items():
        if key not in row:
            return f" has no {key}, it has {', '.join(list(row)[:SHOWN_KEYS]) or 'nothing'}"
        # bool is an int to Python, but no answer index
        if not isinstance(row[key], kind) or isinstance(row[key], bool):
            return f": {key} is no {kind.__name__}"
        if isinstance(row[key], str) and not row[key].strip():
            return f": {key} is empty"
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f" holds half a character (\\u{ord(error.object[error.start]):04x}, a lone surrogate), which is no text"
    return None
