"""A row as it came from its source, and where that was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One record: its columns, and its place in words for errors ("quotes.jsonl, line 212")."""

    values: dict[str, Any]
    place: str
