"""Rows from .csv and .tsv: a header, fields as they are written, separated by comma, semicolon or tab."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from tunesmith.data.rows import Row
from tunesmith.data.sources.inputs import LONGEST_ROW, Text, empty, open_text
from tunesmith.data.sources.json_lines import too_long
from tunesmith.data.sources.reading import Reading, require_unique
from tunesmith.errors import DataError

#: By how many lines and characters of a file its separator is told.
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 100, 1 << 18
_SAID_BY_EXCEL = re.compile(r'"?sep=(.)"?\r?\n?')


def read_csv(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of a .csv or .tsv file, each a text by column. Raises DataError."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW))
    with open_text(path, newline="") as text:
        separator, skipped = _separator(text, path)
    with open_text(path, newline="") as text:
        for _ in range(skipped):
            text.line()
        lines = _Lines(text, skipped)
        yield from _records(lines, csv.reader(lines, delimiter=separator, strict=True), reading)


class _Lines:
    """The lines of a text for the csv module. number: of the last one, from 1."""

    def __init__(self, text: Text, number: int) -> None:
        self.text, self.number = text, number
        self.path = text.path

    def __iter__(self) -> Iterator[str]:
        while line := self.text.line():
            self.number += 1
            if len(line) >= LONGEST_ROW:
                raise too_long(self.path, self.number)
            yield line


def _records(lines: _Lines, records: Iterator[list[str]], reading: Reading) -> Iterator[Row]:
    header: list[str] | None = None
    while True:
        first_line = lines.number + 1
        place = f"{lines.path}, line {first_line}"
        try:
            fields = next(records, None)
            if fields is None:
                break
            if not fields:
                continue
            if damage := lines.text.damage("\n".join(fields), first_line):
                raise damage
            if header is None:
                header = _header(fields, place)
                continue
            row = _row(header, fields, place)
        except csv.Error as error:
            broken = DataError(f"{place}: broken CSV: {error}",
                               "A field that holds the separator, a quote or a line "
                               'break stands in quotes, and a quote in it is written twice ("").')
            if header is None or "unexpected end" in str(error) or "field larger" in str(error):
                raise broken from None  # the rest of the file is within the quotes that were not closed
            reading.bad.reject(broken)
        except DataError as error:
            if header is None:
                raise
            reading.bad.reject(error)
        else:
            yield row
    if header is None:
        raise empty(lines.path)


def _header(names: list[str], place: str) -> list[str]:
    """The names of the columns; where several have none, as after a table's last column, they must stay
    empty.
    """
    require_unique(names if names.count("") == 1 else [name for name in names if name], place)
    return names


def _row(header: list[str], fields: list[str], place: str) -> Row:
    if len(fields) != len(header):
        raise DataError(f"{place}: {len(fields)} fields, the header has {len(header)}",
                        "Quote fields that hold separators or line breaks.")
    values = dict(zip(header, fields, strict=True))
    if len(values) < len(header):
        del values[""]
        if unnamed := [field for name, field in zip(header, fields, strict=True) if not name and field]:
            raise DataError(f"{place}: {len(unnamed)} fields in columns without a name: they would be lost",
                            "Give each column a name in the header.")
    return Row(values, place)


def _separator(text: Text, path: Path) -> tuple[str, int]:
    """What separates the fields, and how many lines stand before the header.

    It is the one by which the first lines have the most columns, all of them as many as the header.
    """
    lines: list[str] = []
    characters = 0
    while len(lines) < _SAMPLE_LINES and characters < _SAMPLE_CHARACTERS and (line := text.line()):
        lines.append(line)
        characters += len(line)
    if lines and (said := _SAID_BY_EXCEL.fullmatch(lines[0])):
        return said[1], 1
    usual = "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes[-2:]) else ","
    candidates = [usual, *(each for each in ",;\t" if each != usual)]
    counts = {each: _columns(lines, each, whole=characters < _SAMPLE_CHARACTERS) for each in candidates}
    return max(candidates, key=lambda each: counts[each]), 0


def _columns(lines: list[str], separator: str, whole: bool) -> tuple[int, int]:
    """(columns if they are several and all rows of a sample have as many, else 0; columns of the header).

    whole: whether the sample is all of the file, so that its last row counts.
    """
    try:
        records = [record for record in csv.reader(lines, delimiter=separator) if record]
    except csv.Error:
        return 0, 0
    if not records:
        return 0, 0
    header = len(records[0])
    rows = records[1:] if whole and len(lines) < _SAMPLE_LINES else records[1:-1]
    return header if header > 1 and all(len(record) == header for record in rows) else 0, header
