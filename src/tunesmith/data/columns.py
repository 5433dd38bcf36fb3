"""What the columns of some rows hold: text, numbers, conversations or lists, and in how many rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tunesmith.data.chat.messages import is_conversation
from tunesmith.data.rows import Row
from tunesmith.visible import on_one_line

#: Of a longer value only this much is remembered, to count how many differ [characters].
_REMEMBERED = 500
#: Of a column's objects no more keys are remembered.
_MOST_KEYS = 50


class Holds(Enum):
    """What the values of a column are, those that are empty left aside."""

    TEXT = "text"
    NUMBER = "numbers"
    TRUTH = "true or false"
    MESSAGES = "conversations"
    TEXTS = "lists of texts"
    OBJECT = "objects"
    NOTHING = "nothing"
    MIXED = "values of several kinds"


@dataclass
class Column:
    """A column over some rows.

    filled: in how many rows it is neither missing, null nor blank; first_empty: the place of the first other
    row. missing: how many rows have no such column. characters: of all values together; longest: of one.
    begins_blank, ends_blank: how many values begin, or end, with white space. values: how often each occurs,
    as text. keys: of the values that are objects.
    """

    name: str
    holds: Holds = Holds.NOTHING
    rows: int = 0
    filled: int = 0
    missing: int = 0
    first_empty: str = ""
    characters: int = 0
    longest: int = 0
    begins_blank: int = 0
    ends_blank: int = 0
    values: Counter[str] = field(default_factory=Counter)
    keys: dict[str, None] = field(default_factory=dict)

    @property
    def empty(self) -> int:
        """How many rows have nothing in it."""
        return self.rows - self.filled

    @property
    def mean_characters(self) -> float:
        """How long its values are on average."""
        return self.characters / self.filled if self.filled else 0.0

    @property
    def is_constant(self) -> bool:
        """Whether all its values are one."""
        return len(self.values) <= 1

    def describe(self) -> str:
        """Its name and what it holds, for a message."""
        name = on_one_line(self.name, 60)
        if self.holds is Holds.NOTHING:
            return f"{name} (empty)"
        if self.holds in (Holds.TEXT, Holds.NUMBER, Holds.TRUTH):
            all_differ = len(self.values) == self.filled
            different = "all different" if all_differ else f"{len(self.values):,} different"
            if self.holds is Holds.TEXT:
                return f"{name} (text of {self.mean_characters:,.0f} characters on average, {different})"
            return f"{name} ({self.holds.value}, {different})"
        of = f" of {', '.join(self.shown_keys())}" if self.keys else ""
        return f"{name} ({self.holds.value}{of})"

    def shown_keys(self, most: int = 8) -> list[str]:
        """The keys of its objects, for a message."""
        return [on_one_line(key, 40) for key in list(self.keys)[:most]]

    def take(self, row: Row) -> None:
        """Count a row in."""
        value = row.values.get(self.name)
        self.rows += 1
        self.missing += self.name not in row.values
        if is_empty(value):
            self.first_empty = self.first_empty or row.place
            return
        held = kind_of(value)
        self.holds = held if self.holds in (Holds.NOTHING, held) else Holds.MIXED
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        if isinstance(value, dict) and len(self.keys) < _MOST_KEYS:
            self.keys.update(dict.fromkeys(map(str, value)))
        self.filled += 1
        self.characters += len(text)
        self.longest = max(self.longest, len(text))
        self.begins_blank += text[:1].isspace()
        self.ends_blank += text[-1:].isspace()
        self.values[text[:_REMEMBERED]] += 1


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, blank text, a list or an object without items."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def kind_of(value: Any) -> Holds:
    """What a value that is not empty is."""
    if is_conversation(value):
        return Holds.MESSAGES
    if isinstance(value, str):
        return Holds.TEXT
    if isinstance(value, bool):
        return Holds.TRUTH
    if isinstance(value, int | float):
        return Holds.NUMBER
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return Holds.TEXTS
    return Holds.OBJECT


def columns_of_rows(rows: Sequence[Row]) -> list[Column]:
    """Every column that any of the rows has, in the order in which they first stand there."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row.values))
    columns = [Column(name) for name in names]
    for column in columns:
        for row in rows:
            column.take(row)
    return columns


def described(columns: Iterable[Column], most: int = 20) -> str:
    """Columns and what they hold, for a message."""
    shown = [column.describe() for column in columns]
    return ", ".join(shown[:most] + ([f"... {len(shown) - most} more"] if len(shown) > most else []))
