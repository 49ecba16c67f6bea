"""Reading files, pinned ones and the user's own.

What a file holds is told by its content, whatever its name: plain text, JSON lines, a JSON array, a table with columns
separated by commas, tabs or semicolons; parquet by its name. Every error is a ValueError that begins with `path=FILE`,
names the line or the item of an array, and says what is allowed.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Placed = list[tuple[str, Any]]  # values with where they stand in the file

JSON_NAMES = (".json", ".jsonl", ".ndjson", ".jsonlines")
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
TABLE_NAMES = {".csv": ",", ".tsv": "\t"}
PROMPTS = "one prompt a line, or JSON (lines or an array) of objects with text (str) or of strings"
SHOWN_KEYS = 8  # of an object that lacks the right one

_OPENS_JSON = re.compile(r'\s*(\{\s*"|\[\s*[{"])')  # nothing else begins so; [INST], {name} and [[Link]] are text
_SPACE = re.compile(r"\s*")
_HEADER = re.compile(r"\w[\w.-]*( [\w.-]+){0,2}")  # the name of a CSV column: prose has a space after its commas


@contextmanager
def named(key: str) -> Iterator[None]:
    """A ValueError about a file begins with `key`, what the user named the file with, in place of `path`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(key + str(error).removeprefix("path")) from None


def sha256(path: str | Path) -> str:
    """Hash of a file's bytes, in hex."""
    return hashlib.sha256(_read(path)).hexdigest()


def read_prompts(path: str | Path) -> list[str]:
    """Calibration prompts: one a line, or the `text` of objects in JSON."""
    content = decoded(path, PROMPTS)
    values = json_values(path, content, PROMPTS)
    if values is not None:
        return [_text_of(path, place, value) for place, value in values]
    if mark := separator(path, content):
        raise ValueError(
            f"path={path} is a table, columns separated by {SEPARATORS[mark]}; allowed: {PROMPTS}; write the column "
            "that you mean as one of them"
        )
    return read_lines(path, content, PROMPTS)


def read_lines(path: str | Path, content: str, allowed: str) -> list[str]:
    """The lines of a text, none of them empty."""
    # not splitlines(): that also cuts at U+2028 and form feeds, and the line numbers would not be an editor's
    lines = content.split("\n")
    while not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"path={path}, line {number} is empty; allowed: {allowed}")
    return lines


def decoded(path: str | Path, allowed: str) -> str:
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


def separator(path: str | Path, content: str) -> str:
    """What separates the columns when the content is a table, by its name or its lines; "" for anything else."""
    lines = content.strip("\n").split("\n")
    suffix = Path(path).suffix.lower()
    if suffix in TABLE_NAMES:  # a spreadsheet writes the semicolons or tabs of its country under the same name
        return max((TABLE_NAMES[suffix], *SEPARATORS), key=lambda mark: _columns(lines, mark))
    for mark in SEPARATORS:
        columns = _columns(lines, mark)
        try:
            rows = list(csv.reader(lines, delimiter=mark)) if columns > 1 else []
        except csv.Error:  # a line beyond its limit
            continue
        if len(rows) < 2:
            continue
        named = all(map(_HEADER.fullmatch, rows[0])) and all(len(row) >= columns for row in rows)
        quoted = all(f'{mark}"' in line or f'"{mark}' in line for line in lines)
        if named or ((quoted or mark == "\t") and all(len(row) == columns for row in rows)):
            return mark
    return ""


def json_values(path: str | Path, content: str, allowed: str) -> Placed | None:
    """The values of JSON lines, or the items of one JSON array; None when the content is no JSON."""
    named = Path(path).suffix.lower() in JSON_NAMES
    if not named and content.lstrip()[0] not in "{[":
        return None
    try:
        values = _values(content)
    except ValueError as error:
        if named or _OPENS_JSON.match(content):
            raise ValueError(f"path={path}, {error}; allowed: {allowed}") from None
        return None
    if not values:
        raise ValueError(f"path={path} holds an empty array; allowed: {allowed}")
    return values


def half_character(value: Any) -> str:
    """What is wrong with a value that holds a lone surrogate, to be read after its place; "" where none does."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        return f" holds half a character (\\u{ord(error.object[error.start]):04x}, a lone surrogate), which is no text"
    return ""


def _read(path: str | Path) -> bytes:
    if not str(path):  # an unset variable of the shell
        raise ValueError("path= is empty; allowed: a readable file, or null for none")
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"path={path} cannot be read ({error.strerror}); allowed: a readable file") from None


def _columns(lines: list[str], mark: str) -> int:
    """How many columns the first of these lines has; 0 when it is beyond the limit."""
    try:
        return len(next(csv.reader(lines[:1], delimiter=mark)))
    except csv.Error:
        return 0


def _values(content: str) -> Placed:
    """JSON values one after the other, each on its line or over several; of a single array its items."""
    decoder = json.JSONDecoder()
    values: Placed = []
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
        values.append((f"line {line}", value))
        at = _after_space(content, at)
    if len(values) == 1 and isinstance(values[0][1], list):
        return [(f"item {number}", item) for number, item in enumerate(values[0][1], start=1)]
    return values


def _after_space(content: str, at: int) -> int:
    space = _SPACE.match(content, at)
    return space.end() if space else at


def _text_of(path: str | Path, place: str, value: Any) -> str:
    """A string, or the `text` of an object."""
    wrong = ""
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(value, dict | str):
        wrong = " is no JSON object"
    elif isinstance(value, dict) and "text" not in value:
        wrong = f" has no text, it has {', '.join(list(value)[:SHOWN_KEYS]) or 'nothing'}"
    elif not isinstance(text, str):
        wrong = ": text is no str"
    elif not text.strip():
        wrong = ": text is empty"
    if wrong := wrong or half_character(value):
        raise ValueError(f"path={path}, {place}{wrong}; allowed: {PROMPTS}")
    return str(text)
