"""The items of a task, wherever they come from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from slimrun.evaluation.source import file, table
from slimrun.evaluation.source.hub import Hub
from slimrun.evaluation.source.pinned import pinned
from slimrun.evaluation.source.table import Row, Rows

T = TypeVar("T")


@dataclass(frozen=True)
class Items:
    """Rows, what names their origin in messages, and the hash of its content."""

    origin: str
    rows: Rows
    sha256: str

    def selected(self, limit: int | None) -> "Items":
        """`limit` of them evenly over all: a file sorted by subject still gives every subject; None: all."""
        if limit is None:
            return self
        if limit > len(self.rows):
            name = Path(self.origin.partition("=")[2]).name
            raise ValueError(f"limit={limit} is out of range; allowed: 1 to {len(self.rows)}, the items of {name}")
        return replace(self, rows=[self.rows[i] for i in evenly(len(self.rows), limit)])

    def before(self, items: "Items", shots: int, make: Callable[[Row], T], by: str | None = None) -> list[list[T]]:
        """What is made of the first `shots` of these examples for each item, which is itself none of them.

        `by` names a column that item and examples have to be equal in. ValueError when there are fewer, or no such
        column.
        """
        for rows in (items, self) if by else ():
            for place, row in rows.rows:
                if by not in row:
                    raise ValueError(f"shots_by={by} is no column of {rows.origin}, {place}; allowed: {', '.join(row)}")
        made: dict[str, T] = {}
        before = []
        for _, item in items.rows:
            others = (placed for placed in self.rows if (not by or placed[1][by] == item[by]) and placed[1] != item)
            shown = list(islice(others, shots))
            if len(shown) < shots:
                there = f"the examples there are{f' of {by}={item[by]}' if by else ''} beside the item itself"
                raise ValueError(f"shots={shots} is out of range; allowed: 0 to {len(shown)}, {there}")
            for place, row in shown:
                if place not in made:
                    [made[place]] = replace(self, rows=[(place, row)]).made(make)
            before.append([made[place] for place, _ in shown])
        return before

    def made(self, make: Callable[[Row], T]) -> list[T]:
        """What is made of every row; a ValueError names it."""
        made = []
        for place, row in self.rows:
            try:
                made.append(make(row))
            except ValueError as error:
                raise ValueError(f"{self.origin}, {place}: {error}") from error
        return made


def evenly(count: int, limit: int) -> list[int]:
    """Numbers of `limit` of so many items, evenly over all."""
    return [i * count // limit for i in range(limit)]


def items(path: str | None, hub: Hub | None = None, otherwise: str | None = None) -> Items:
    """The items of a file; without one those of the hub; without either those of the pinned set `otherwise`."""
    if path is None and hub is not None:
        return Items(f"hub.id={hub.id}", hub.rows(hub.split), hub.sha256(hub.split))
    return of_file(_pinned(otherwise) if path is None else path)


def of_file(path: str | Path, key: str = "path") -> Items:
    """The items of a file; `key` is what the user named it with."""
    with file.named(key):
        return Items(f"{key}={path}", table.read_rows(path), file.sha256(path))


def parallel(source: str, target: str) -> Items:
    """Rows of `source` and `target`, the lines of two files."""
    rows = table.read_parallel(source, target)
    return Items(f"path={source}", rows, file.sha256(source) + file.sha256(target))


def examples(shots: int, path: str | None, hub: Hub | None) -> Items | None:
    """The rows that examples are made of, as many as there are; None without examples."""
    if not shots:
        return None
    if path is not None:
        return of_file(path, "shots_path")
    if hub is None or hub.shots_split is None:
        raise ValueError(f"shots={shots} needs examples: allowed: shots_path=FILE, or hub.shots_split of a data set")
    return Items(f"hub.shots_split={hub.shots_split}", hub.rows(hub.shots_split), hub.sha256(hub.shots_split))


def _pinned(name: str | None) -> Path:
    if name is None:
        raise ValueError(
            "path=null names no items, and the task brings none; allowed: a file, or hub as conf/task/arc.yaml has it"
        )
    return pinned(name)
