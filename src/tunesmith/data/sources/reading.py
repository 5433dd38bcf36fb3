"""What every reader of a file is given, and what all of them share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.data.sources.bad_rows import BadRows
from tunesmith.errors import DataError
from tunesmith.visible import on_one_line


@dataclass
class Reading:
    """How rows are read. bad: receives those that cannot be. name: `data.name`: a configuration, or a
    sheet.
    """

    bad: BadRows = field(default_factory=BadRows)
    name: str | None = None


def row_of(value: object, place: str) -> Row:
    """A row of a JSON value. Raises DataError for what is no object."""
    if not isinstance(value, dict):
        raise DataError(f"{place}: a row is a JSON object with columns, this is {type(value).__name__}")
    return Row(value, place)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys all differ: of two values under one key, one would be lost."""
    columns = dict(pairs)
    if len(columns) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {on_one_line(twice)!r} stands twice in one object")
    return columns


def require_unique(names: list[str], where: str) -> None:
    """Raise DataError for columns of one name."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        places = [str(i) for i, name in enumerate(names, start=1) if name == twice]
        raise DataError(f"{where}: the column {on_one_line(twice)!r} stands in places {', '.join(places)}: "
                        "all but one would be lost", "Give each column a name of its own.")


def reason(error: Exception) -> str:
    """Why JSON could not be read, in a line."""
    return "nested too deep to read" if isinstance(error, RecursionError) else str(error).splitlines()[0]
