"""What a check of the data is, and what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from tunesmith.data.inspect.seen import Facts, SeenRow

Severity = Literal["error", "warning", "note"]
RANK: dict[str, int] = {"error": 0, "warning": 1, "note": 2}
#: How many places a finding names.
PLACES = 8


@dataclass(frozen=True)
class Finding:
    """Something about the data that its owner should know.

    count: how many rows it is about. rows: the first of their places. message: what there is. advice: what to
    do. indices: of the places in `rows`, their numbers in the order of reading.
    """

    kind: str
    severity: Severity
    count: int
    rows: tuple[str, ...]
    message: str
    advice: str
    indices: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As `inspect --json` has it."""
        fields = asdict(self)
        del fields["indices"]
        return {**fields, "rows": list(self.rows)}


class Hits:
    """How many rows a check stopped at, and the first places."""

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[str] = []
        self.indices: list[int] = []

    def add(self, row: SeenRow) -> None:
        """One more row."""
        self.count += 1
        if len(self.rows) < PLACES:
            self.rows.append(row.place)
            self.indices.append(row.index)


class Check(ABC):
    """Looks for one kind of finding: sees every row once, in order, and then says what it found.

    A check keeps at most a few numbers for each row. cheap: whether it costs so little that every training
    run makes it.
    """

    cheap: ClassVar[bool] = True

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.hits = Hits()

    @abstractmethod
    def see(self, row: SeenRow) -> None:
        """Look at a row."""

    @abstractmethod
    def findings(self, places: Places) -> Iterable[Finding]:
        """What was found, once every row was seen."""

    def found(self, kind: str, severity: Severity, message: str, advice: str,
              hits: Hits | None = None) -> list[Finding]:
        """The finding of these hits (else of the check's own); none where there are no hits."""
        hits = self.hits if hits is None else hits
        return [Finding(kind, severity, hits.count, tuple(hits.rows), message, advice,
                        tuple(hits.indices))] if hits.count else []


class Places:
    """The places of all rows that were seen, for checks that compare rows once all were seen."""

    def __init__(self) -> None:
        self._names = bytearray()
        self._ends = array("Q", [0])

    def append(self, place: str) -> None:
        """The place of the next row."""
        self._names += place.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._names))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return self._names[self._ends[index]:self._ends[index + 1]].decode("utf-8", "surrogatepass")

    def hits(self, indices: Iterable[int]) -> Hits:
        """These rows as hits, in their order."""
        hits = Hits()
        for index in indices:
            hits.count += 1
            if len(hits.rows) < PLACES:
                hits.rows.append(self[int(index)])
                hits.indices.append(int(index))
        return hits


def rows_phrase(count: int, verb_one: str, verb_many: str) -> str:
    """As in "1 row has", "8 rows have"."""
    return f"1 row {verb_one}" if count == 1 else f"{count:,} rows {verb_many}"
