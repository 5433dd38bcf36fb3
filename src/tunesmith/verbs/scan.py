"""What is in a source: its splits, the shape of its rows, how many there are, and which are the longest."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.rows import Row
from tunesmith.data.shapes import LOOKED_AT, Shape, recognise
from tunesmith.data.sources import NoSuchSplit, Source, open_sources
from tunesmith.errors import DataError
from tunesmith.hub.client import quiet
from tunesmith.verbs.show import Show

#: More rows are not counted.
_MOST_ROWS = 200_000
#: So many of the longest rows are kept, so that the longest in tokens is among them.
_LONGEST_KEPT = 100
#: A split of fewer different rows tells nothing when it is held out; of a larger one only so many are.
FEWEST_HELD_OUT, _MOST_HELD_OUT = 5, 512
#: What the split that is held out is called.
_VALIDATION = ("validation", "valid", "val", "dev")


@dataclass(frozen=True)
class HeldOut:
    """A split of the same data set that is held out. setting: as `data.validation` names it."""

    setting: str
    rows: int


@dataclass(frozen=True)
class Scan:
    """What was seen of a source.

    split: the one that is learnt. rows: how many there are, or `_MOST_ROWS` where not all were counted
    (`whole`). different: how many differ in what is learnt. first: the first rows; longest: of the others
    those with the most text. held_out: a split for that, where the data set has one. notes: what is to be
    said of the splits.
    """

    split: str
    shape: Shape
    rows: int
    whole: bool
    different: int
    first: list[Row]
    longest: list[Row]
    held_out: HeldOut | None
    notes: tuple[str, ...]

    def texts(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Of each row all that is learnt or given, and the answer."""
        names, answer = _names(self.shape), self.shape.column("completion")
        return [(_text(row, names), _text(row, [answer or names[0]])) for row in rows]


def scan(source: str, show: Show) -> Scan:
    """Read a source once, keeping few of its rows.

    Raises DataError for a source that cannot be read and for rows of no known shape, NetworkError.
    """
    show.stage("looking at the data")
    try:
        split, opened = _opened(source, show)
    except DataError as error:
        if error.setting == "data.name":
            error.reword(hint="Write a recipe without --data, and name it in data.name there.")
        raise
    rows = opened.rows()
    first = list(itertools.islice(rows, LOOKED_AT))
    shape = recognise(first, source)
    names, seen, count = _names(shape), set[bytes](), 0
    longest: list[tuple[int, int, Row]] = []
    for row in itertools.islice(itertools.chain(first, rows), _MOST_ROWS):
        text = _text(row, names)
        seen.add(_hash(text))
        count += 1
        if count > LOOKED_AT:
            heapq.heappush(longest, (len(text), count, row))
            if len(longest) > _LONGEST_KEPT:
                heapq.heappop(longest)
    notes = [] if split == "train" else [f"There is no split called train: {split} is learnt (data.split)."]
    return Scan(split, shape, count, next(rows, None) is None, len(seen), first,
                [row for _, _, row in longest], _held_out(source, opened, shape), tuple(notes))


def _opened(source: str, show: Show) -> tuple[str, Source]:
    """(the split that is learnt, its rows): train, or the only one that there is or that is called so."""
    try:
        return "train", open_sources(source, "train", "--data", show.note)
    except NoSuchSplit as error:
        called_so = [name for name in error.available if name.lower().startswith("train")]
        split = (called_so or error.available)[:2]
        if len(split) != 1:
            raise error.reword(hint=f"{error.hint} Write a recipe without --data, and name one in data.split "
                                    "there.") from None
        return split[0], open_sources(source, split[0], "--data", show.note)


def _held_out(source: str, learnt: Source, shape: Shape) -> HeldOut | None:
    """The split that the data set itself holds out, if it is of the same shape and says enough."""
    try:
        name, opened = _VALIDATION[0], open_sources(source, _VALIDATION[0], "--data", quiet)
    except NoSuchSplit as error:
        called_so = next((each for each in error.available if each.lower() in _VALIDATION), None)
        if called_so is None:
            return None
        name, opened = called_so, open_sources(source, called_so, "--data", quiet)
    if set(opened.files) & set(learnt.files):  # one file, which is of whatever split it is asked for
        return None
    names = _names(shape)
    rows = list(itertools.islice(opened.rows(), _MOST_HELD_OUT + 1))
    fits = all(column in row.values for row in rows for column in
               (shape.column("messages") or shape.column("completion"),))
    if not fits or len({_hash(_text(row, names)) for row in rows}) < FEWEST_HELD_OUT:
        return None
    if len(rows) > _MOST_HELD_OUT:
        return HeldOut(f"split:{name}[:{_MOST_HELD_OUT}]", _MOST_HELD_OUT)
    return HeldOut(f"split:{name}", len(rows))


def _names(shape: Shape) -> list[str]:
    return [column.name for column in shape.parts.values()]


def _text(row: Row, names: Sequence[str]) -> str:
    """What of a row is learnt, as one text."""
    return json.dumps([row.values.get(name) for name in names], ensure_ascii=False, default=str)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
