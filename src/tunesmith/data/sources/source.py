"""What all kinds of sources are once they are open: rows that can be read again, and the files that were
taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tunesmith.data.rows import Row
from tunesmith.data.sources.bad_rows import BadRows
from tunesmith.data.sources.splits import Part, bounds
from tunesmith.errors import DataError
from tunesmith.hub.client import Tell, quiet

#: Begins to read rows from the first one.
Read = Callable[[], Iterator[Row]]


@dataclass
class Source:
    """An open source of rows.

    name: as the recipe has it. files: what was taken, by names that hold on any machine. read: its rows from
    the first one. skipped: the bad rows, under `data.bad_rows: skip`, counted while rows are read. tell:
    receives what is to be said at the end. key: the recipe's key, for errors. made_of: the local files, or
    words that name the content of what is on the Hub.
    """

    name: str
    files: list[str]
    read: Read
    skipped: BadRows = field(default_factory=BadRows)
    tell: Tell = quiet
    key: str = "data.source"
    made_of: list[Path | str] = field(default_factory=list)
    _told: set[str] = field(default_factory=set)

    def rows(self) -> Iterator[Row]:
        """Every row, in the source's order, one at a time; the same again when it is called again.

        Raises DataError for a row or a file that cannot be read, for a source without rows, and at the end
        for too many skipped rows.
        """
        self.skipped.begin()
        good = 0
        for row in self.read():
            before = self.skipped.count
            yield row
            good += self.skipped.count == before  # whoever uses the rows may skip some, too
        self.end(good)

    def end(self, good: int) -> None:
        """Look at what was read, as `rows` does at its end; good: how many rows are used. Raises DataError.
        """
        if not good:
            why = f": {self.skipped.first[0]}" if self.skipped.first else ""
            raise DataError(f"{self.key}: {self.name} has no rows{why}")
        self.skipped.require_few(good)
        self.say(self.skipped.summary())

    def say(self, line: str) -> None:
        """Tell a line, once, however often the rows are read."""
        if line and line not in self._told:
            self._told.add(line)
            self.tell(line)


def sliced(read: Read, part: Part) -> Read:
    """The rows of a slice of a split. A slice by percent or from the end counts the rows first, once."""
    if not part.slice:
        return read
    counted: list[int] = []

    def rows() -> Iterator[Row]:
        if not counted:
            counted.append(sum(1 for _ in read()))
        start, stop = bounds(part, counted[0])
        return islice(read(), start, max(start, stop))

    return rows
