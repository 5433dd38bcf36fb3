"""Rows from a JSON document: a list of objects, an object that wraps one, an object of columns; item by
item.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.data.sources.inputs import LONGEST_ROW, Text, empty, open_text
from tunesmith.data.sources.reading import Reading, reason, row_of, unique_keys
from tunesmith.errors import DataError
from tunesmith.visible import on_one_line

_BLANKS = re.compile(r"[ \t\n\r]*")
_CHUNK = 1 << 18
#: An object of columns is held in memory whole, so it may be no larger [characters].
_MOST_COLUMNS = 256 << 20


class _Scanner:
    """Goes through a JSON text value by value, holding no more of it than one value needs."""

    def __init__(self, text: Text) -> None:
        self._text, self.path = text, text.path
        self._decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
        self._buffer, self._at, self._ended = "", 0, False
        self._line, self._column = 1, 0  # of the buffer's beginning, the first from 1, the second from 0
        self.passed = 0  # characters before the buffer

    def _more(self, count: int = 0) -> None:
        """Drop what is passed, and read on, so many characters at least."""
        passed = self._buffer[:self._at]
        self._line += passed.count("\n")
        self._column = len(passed) - passed.rfind("\n") - 1 + (0 if "\n" in passed else self._column)
        self.passed += self._at
        chunk = self._text.read(max(count, _CHUNK))
        self._ended = not chunk
        if not chunk.isascii():
            number = self._line + self._buffer.count("\n", self._at)
            for offset, line in enumerate(chunk.split("\n")):
                if damage := self._text.damage(line, number + offset):
                    raise damage
        self._buffer, self._at = self._buffer[self._at:] + chunk, 0

    def peek(self) -> str:
        """The next character that is no blank; empty at the end of the text."""
        while True:
            self._at = _BLANKS.match(self._buffer,
                                     self._at).end()  # type: ignore[union-attr]  # it always does
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at:self._at + 1]
            self._more()

    def take(self, characters: str) -> str:
        """The next character, which must be one of these. Raises DataError."""
        if not (found := self.peek()) or found not in characters:
            raise self.broken("the text ends too early, so the file is cut short" if not found
                              else f"{' or '.join(characters)} expected", self._at)
        self._at += 1
        return found

    def broken(self, why: str, at: int) -> DataError:
        """The error for what stands at a place in the buffer."""
        line = self._line + self._buffer.count("\n", 0, at)
        begins = self._buffer.rfind("\n", 0, at)
        column = at - begins + (self._column if begins < 0 else 0)
        return DataError(f"{self.path}, line {line}: broken JSON: {why}, column {column}",
                         "A .json file is one list of objects, an object of columns, or one object a line.")

    def value(self) -> Any:
        """The next value. Raises DataError for none, and for one longer than a row may be."""
        self.peek()
        earlier = -1
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
                if end < len(self._buffer) or self._ended or isinstance(value, dict | list | str):
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                at = error.pos
                if self._ended or (len(self._buffer) - self._at > LONGEST_ROW and at == earlier):
                    raise self.broken(error.msg, at) from None
                earlier = at
            except (ValueError, RecursionError) as error:
                raise self.broken(reason(error), self._at) from None
            if len(self._buffer) - self._at > LONGEST_ROW:
                raise self.broken(f"a value longer than {LONGEST_ROW >> 20} Mi characters, so it is no row",
                                  self._at)
            earlier -= self._at
            self._more(len(self._buffer) - self._at)

    def items(self) -> Iterator[Any]:
        """The values of a list that begins here."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The keys of an object that begins here; whoever asks takes each one's value."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        seen: set[str] = set()
        while True:
            if self.peek() != '"':
                raise self.broken("a key in double quotes expected", self._at)
            key = str(self.value())
            if key in seen:
                raise self.broken(f"the key {on_one_line(key)!r} stands twice in one object", self._at)
            seen.add(key)
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return


@contextmanager
def _scanner(path: Path) -> Iterator[_Scanner]:
    with open_text(path) as text:
        yield _Scanner(text)


def read_document(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of a JSON document. Raises DataError."""
    with _scanner(path) as scanner:
        first = scanner.peek()
        if first == "[":
            yield from _rows(scanner, scanner.items(), reading)
            if scanner.peek():
                raise scanner.broken("more text after the end of the list", scanner._at)
            return
        if not first:
            raise empty(path)
        if first != "{":
            scanner.value()
            raise DataError(f"{path}: a .json file is a list of objects, or an object; this is neither")
        shape = _shape_of(scanner)
    if shape.more:
        with _scanner(path) as scanner:
            yield from _rows(scanner, _objects(scanner), reading)
    else:
        yield from _of_one_object(path, shape, reading)


def _rows(scanner: _Scanner, values: Iterator[Any], reading: Reading) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        try:
            row = row_of(value, f"{scanner.path}, row {number}")
        except DataError as error:
            reading.bad.reject(error)
        else:
            yield row


def _objects(scanner: _Scanner) -> Iterator[Any]:
    while scanner.peek():
        yield scanner.value()


@dataclass
class _Shape:
    """Of the object that a document begins with, by key: how many items each list has; what kind they are.

    lists: the lengths of all lists. objects: lists of objects alone. messages: lists of chat messages.
    others: the values that are no lists, by their type. more: whether anything follows the object.
    """

    lists: dict[str, int] = field(default_factory=dict)
    objects: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    others: dict[str, type] = field(default_factory=dict)
    more: bool = False


def _shape_of(scanner: _Scanner) -> _Shape:
    shape = _Shape()
    for key in scanner.members():
        if scanner.peek() != "[":
            shape.others[key] = type(scanner.value())
            continue
        count, all_objects, all_messages = 0, True, True
        for item in scanner.items():
            count += 1
            all_objects = all_objects and isinstance(item, dict)
            all_messages = all_messages and isinstance(item, dict) and bool({"role", "from"} & item.keys())
        shape.lists[key] = count
        if count and all_objects:
            shape.objects.append(key)
        if count and all_messages:
            shape.messages.append(key)
    shape.more = bool(scanner.peek())
    return shape


def _of_one_object(path: Path, shape: _Shape, reading: Reading) -> Iterator[Row]:
    wrapped = [key for key in shape.objects if key not in shape.messages]
    lengths = list(shape.lists.values())
    if not shape.messages and len(wrapped) == 1 and lengths.count(shape.lists[wrapped[0]]) == 1:
        yield from _wrapped(path, wrapped[0], reading)
    elif not shape.messages and len(wrapped) > 1 and len(wrapped) == len(shape.lists):
        raise DataError(f"{path}: one object with several lists of objects: {_names(wrapped)}",
                        "Which of them are the rows? Write those in a file of their own, as a list.")
    elif shape.lists.keys() >= {"columns", "data"} and shape.lists.keys() <= {"columns", "data", "index"}:
        yield from _split_table(path, reading)
    elif not shape.messages and shape.lists and not shape.others:
        yield from _columns(path, shape)
    else:
        with _scanner(path) as scanner:
            value = scanner.value()
        if len(value) > 0 and set(shape.others.values()) == {dict} and not shape.lists:
            yield from _of_objects(path, value)
        else:
            yield row_of(value, f"{path}, row 1")


def _names(names: list[str]) -> str:
    return ", ".join(on_one_line(name, 40) for name in names[:8]) + (", ..." if len(names) > 8 else "")


def _wrapped(path: Path, wanted: str, reading: Reading) -> Iterator[Row]:
    with _scanner(path) as scanner:
        for key in scanner.members():
            if key == wanted:
                yield from _rows(scanner, scanner.items(), reading)
            else:
                scanner.value()


def _columns(path: Path, shape: _Shape) -> Iterator[Row]:
    lengths = set(shape.lists.values())
    if len(lengths) > 1:
        shown = ", ".join(f"{on_one_line(key, 40)} {count:,}" for key, count in list(shape.lists.items())[:8])
        raise DataError(f"{path}: an object of columns of different lengths: {shown}",
                        "Each row needs a value in "
                        "each column; write null where there is none.")
    columns: dict[str, list[Any]] = {}
    with _scanner(path) as scanner:
        for key in scanner.members():
            column = columns.setdefault(key, [])
            for item in scanner.items():
                column.append(item)
                if scanner.passed > _MOST_COLUMNS:
                    raise DataError(f"{path}: an object of columns, which is held in memory whole, of more "
                                    f"than {_MOST_COLUMNS >> 20} Mi characters",
                                    "Write one object a row (.jsonl).")
    for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
        yield Row(dict(zip(columns, values, strict=True)), f"{path}, row {number}")


def _split_table(path: Path, reading: Reading) -> Iterator[Row]:
    """What pandas calls split: the names of the columns, and the rows as lists."""
    names: list[str] = []
    for wanted in ("columns", "data"):
        with _scanner(path) as scanner:
            for key in scanner.members():
                if key != wanted:
                    scanner.value()
                elif wanted == "columns":
                    names = [str(name) for name in scanner.items()]
                else:
                    yield from _rows(scanner, (
                        dict(zip(names, item, strict=True)) if isinstance(item, list)
                        and len(item) == len(names)
                        else item for item in scanner.items()), reading)


def _of_objects(path: Path, value: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """An object of objects, as pandas writes tables: columns by row number, or rows by number; else one
    row.
    """
    inner = list(next(iter(value.values())))
    same = inner and all(list(each) == inner for each in value.values())
    if same and all(name.isdecimal() for name in inner):
        for number, index in enumerate(inner, start=1):
            yield Row({name: column[index] for name, column in value.items()}, f"{path}, row {number}")
    elif inner and all(name.isdecimal() for name in value):
        for number, each in enumerate(value.values(), start=1):
            yield Row(each, f"{path}, row {number}")
    else:
        yield Row(value, f"{path}, row 1")
