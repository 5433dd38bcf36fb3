"""A row as it came from its source, and where that was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One record: its columns, and its place in words for errors ("quotes.jsonl, line 212").

    from_arrow: whether it came from a table with one schema for all rows, in which an object has the keys of
    every other object of its column, as nulls.
    """

    values: dict[str, Any]
    place: str
    from_arrow: bool = False
