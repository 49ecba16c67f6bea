"""Files of items as rows of columns: JSON, CSV, TSV, parquet, two text files side by side."""

import csv
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

from slimrun.evaluation.source.file import decoded, half_character, json_values, named, read_lines, separator, sha256

Row = dict[str, Any]
Rows = list[tuple[str, Row]]  # each with where it stands
ROWS = "items as JSON (lines or an array) of objects, as a table with a header (CSV, TSV), or as parquet"
FILES = 8  # whose rows are kept
PARALLEL = "one text a line, in both files as many"


def read_rows(path: str | Path) -> Rows:
    """The rows of a file, each with where it stands; a string of JSON is a row with `text`."""
    rows = read_rows_or_text(path)
    if isinstance(rows, str):
        raise ValueError(f"path={path}, line 1 is no JSON object; allowed: {ROWS}")
    return rows


def read_rows_or_text(path: str | Path) -> Rows | str:
    """The rows of a file, or the text of one that is none of the formats of rows."""
    return _rows_or_text(str(path), sha256(path))


@lru_cache(maxsize=FILES)
def _rows_or_text(path: str, _: str) -> Rows | str:
    """A task asks a dozen times; parsed once as long as the file's hash is the same."""
    if Path(path).suffix.lower() == ".parquet":
        return _parquet(path)
    content = decoded(path, ROWS)
    values = json_values(path, content, ROWS)
    if values is None:
        mark = separator(path, content)
        return _table(path, content, mark) if mark else content
    rows = []
    for place, value in values:
        row = {"text": value} if isinstance(value, str) else value
        if wrong := half_character(row) if isinstance(row, dict) else " is no JSON object":
            raise ValueError(f"path={path}, {place}{wrong}; allowed: {ROWS}")
        rows.append((place, row))
    return rows


def read_parallel(source: str | Path, target: str | Path) -> Rows:
    """Rows of `source` and `target`: the lines of two files."""
    columns = [read_lines(source, decoded(source, PARALLEL), PARALLEL)]
    with named("target_path"):
        columns.append(read_lines(target, decoded(target, PARALLEL), PARALLEL))
    if len(columns[0]) != len(columns[1]):
        raise ValueError(
            f"path={source} has {len(columns[0])} lines, target_path={target} {len(columns[1])}; allowed: {PARALLEL}"
        )
    pairs = enumerate(zip(*columns), start=1)
    return [(f"line {number}", {"source": one, "target": two}) for number, (one, two) in pairs]


def _table(path: str | Path, content: str, mark: str) -> Rows:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=mark)
    rows: Rows = []
    try:
        header = next(reader)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"path={path}, line {reader.line_num} has {len(cells)} columns, the header {len(header)}; "
                    f"allowed: {ROWS}"
                )
            rows.append((f"line {reader.line_num}", dict(zip(header, cells))))
    except csv.Error as error:
        raise ValueError(f"path={path}, line {reader.line_num} cannot be read ({error}); allowed: {ROWS}") from None
    if not rows:
        raise ValueError(f"path={path} holds a header and no row; allowed: {ROWS}")
    return rows


def _parquet(path: str | Path) -> Rows:
    from pyarrow import ArrowException, parquet  # half a second that other files need not wait

    try:
        rows = parquet.read_table(Path(path).expanduser()).to_pylist()
    except (OSError, ArrowException) as error:
        raise ValueError(f"path={path} cannot be read ({str(error).splitlines()[0]}); allowed: {ROWS}") from None
    if not rows:
        raise ValueError(f"path={path} holds no row; allowed: {ROWS}")
    return [(f"row {number}", row) for number, row in enumerate(rows, start=1)]
